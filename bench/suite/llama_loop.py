"""The plain C loop over libllama as a process that answers with timings, one round at a time.

It is compiled against the headers and libraries that llama-cpp-python's wheel installs, so it is the same build of
llama.cpp that the engine uses. Rounds of it and of the engine can alternate, so that both see the same machine.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sysconfig
import time
from dataclasses import dataclass
from pathlib import Path

import llama_cpp

_SOURCE = Path(__file__).with_name("llama_loop.c")


@dataclass(frozen=True)
class Round:
    """Milliseconds of one prefill and of each decode after it."""

    prefill_ms: float
    decode_ms: tuple[float, ...]


def compile_loop(folder: Path) -> Path:
    """The program, compiled into `folder`."""
    library = Path(llama_cpp.__file__).parent / "lib"
    program = folder / "llama_loop"
    command = [*shlex.split(os.environ.get("CC", "cc")), "-O2", str(_SOURCE), "-o", str(program)]
    command += [f"-I{sysconfig.get_path('purelib')}/include", f"-L{library}", f"-Wl,-rpath,{library}"]
    subprocess.run([*command, "-lllama", "-lggml", "-lggml-base"], check=True)
    return program


class PlainLoop:
    """A running loop with one model loaded."""

    def __init__(self, program: Path, model: Path, threads: int, context: int, *, amx: bool = True) -> None:
        command = [str(program), str(model), str(threads), str(context), *([] if amx else ["no-amx"])]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._line() == "ready"

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def round(self, pieces: str, steps: int) -> Round:
        """Run one prefill and `steps` decodes.

        Args:
            pieces: the batches of the prefill, e.g. `t14 e256 t16`: 14 token ids, 256 embeddings, 16 ids.
            steps: how many single tokens follow.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(f"{steps} {pieces}\n")
        self._process.stdin.flush()
        prefill, *decode = map(float, self._line().split())
        return Round(prefill, tuple(decode))

    def cpu_ms(self) -> float:
        """CPU time that the process has taken so far."""
        # How Linux numbers the CPU clock of another process.
        return 1e3 * time.clock_gettime((~self._process.pid << 3) | 2)

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
