"""The one place that runs code in a child process: a native crash, a hang or the OOM killer costs a line, not the CLI.

In: the name of a function, `package.module:function`, and its keyword arguments as JSON. Out: its JSON result and the
peak memory it took, or one `ChildError` that says how it ended. While it works the function may send JSON messages
through `send`. Messages are JSON lines on a pipe of their own: nothing is pickled, and whatever a native library prints
cannot be mistaken for an answer. The child dies with its parent.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias

import edgevlm.errors
from edgevlm.errors import EdgeVLMError, EngineError

#: Anything `json` can write: None, bool, int, float, str, list, dict.
Json: TypeAlias = Any
Send: TypeAlias = Callable[[Json], None]
Kind: TypeAlias = Literal["crashed", "hung", "failed"]

_EXIT_GRACE_S = 10.0
_TAIL_BYTES = 4000
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class ChildResult:
    """What a child returned, and the peak of its resident memory in bytes (0 where the system does not tell)."""

    value: Json
    peak_rss_bytes: int


class ChildError(EngineError):
    """A child that gave no result.

    Attributes:
        kind: `crashed` (a signal), `hung` (silent for too long), `failed` (an exception or an early exit).
        signal_name: e.g. `SIGSEGV`; empty unless crashed.
        output: the tail of what the child printed.
    """

    usual_hint = ""

    def __init__(self, what: str, where: str, hint: str, kind: Kind, output: str = "", signal_name: str = "") -> None:
        super().__init__(what, where, hint)
        self.kind = kind
        self.output = output
        self.signal_name = signal_name


def run_child(
    target: str,
    arguments: dict[str, Json],
    *,
    timeout: float,
    on_message: Callable[[Json], None] | None = None,
    environment: dict[str, str] | None = None,
) -> ChildResult:
    """Call `target(send, **arguments)` in a fresh interpreter.

    Args:
        target: `package.module:function`.
        arguments: keyword arguments, JSON.
        timeout: seconds without a message after which the child counts as hung and is killed.
        on_message: called here with each message the function sends.
        environment: variables added to the child's environment.

    Raises:
        ChildError: the child crashed, hung or raised something unexpected.
        EdgeVLMError: the function raised one; it is raised again here, of the same class.
    """
    variables = {**os.environ, "PYTHONSAFEPATH": "1", "PYTHONFAULTHANDLER": "1", **(environment or {})}
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as request:
        request.write(json.dumps(arguments).encode())
        request.seek(0)
        read_end, write_end = os.pipe()
        try:
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-c",
                    "from edgevlm.child import main; main()",
                    target,
                    str(write_end),
                    str(os.getpid()),
                ],
                stdin=request,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=(write_end,),
                env=variables,
                start_new_session=True,
            )
        except OSError as error:
            os.close(read_end)
            raise ChildError(f"cannot start a process: {error.strerror}", target, "", "failed") from error
        finally:
            os.close(write_end)
        with process, os.fdopen(read_end, "rb") as pipe:
            try:
                final, hung = _listen(pipe, timeout, on_message)
                if not hung:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(_EXIT_GRACE_S)
            finally:
                _kill(process)
        return _conclude(target, final, process.returncode, timeout if hung else 0.0, _tail(output))


def _listen(pipe: IO[bytes], timeout: float, on_message: Callable[[Json], None] | None) -> tuple[Json, bool]:
    """The final message (None if the pipe closed without one) and whether the child fell silent."""
    for line in _lines(pipe, timeout):
        if line is None:
            return None, True
        message = json.loads(line)
        if "message" not in message:
            return message, False
        if on_message is not None:
            on_message(message["message"])
    return None, False


def _lines(pipe: IO[bytes], timeout: float) -> Iterator[bytes | None]:
    """Complete lines as they arrive; None, and the end, after `timeout` seconds without one."""
    buffer = b""
    deadline = time.monotonic() + timeout
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while True:
            if not selector.select(max(0.0, deadline - time.monotonic())):
                yield None
                return
            chunk = os.read(pipe.fileno(), 1 << 16)
            if not chunk:
                return
            *lines, buffer = (buffer + chunk).split(b"\n")
            if lines:
                yield from lines
                deadline = time.monotonic() + timeout


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End the child's whole group, so that its own children do not outlive it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _conclude(target: str, final: Json, returncode: int, silent_s: float, output: str) -> ChildResult:
    if final is not None and "result" in final:
        return ChildResult(final["result"], int(final["peak_rss_bytes"]))
    if final is not None:
        _raise_again(final["error"], target, output)
    last = output.strip().splitlines()[-1][:200] if output.strip() else ""
    if silent_s:
        raise ChildError(f"no answer for {silent_s:g} s; the process was stopped", target, last, "hung", output)
    if returncode >= 0:
        raise ChildError(f"the process ended early with exit code {returncode}", target, last, "failed", output)
    name = signal.Signals(-returncode).name
    ending = "was killed (SIGKILL), most likely for want of memory" if name == "SIGKILL" else f"crashed with {name}"
    raise ChildError(f"the process {ending}", target, "", "crashed", output, name)


def _raise_again(error: dict[str, str], target: str, output: str) -> None:
    cls = getattr(edgevlm.errors, error["class"], None)
    if isinstance(cls, type) and issubclass(cls, EdgeVLMError):
        raise cls(error["what"], error["where"], error["hint"])
    raise ChildError(f"{error['class']}: {error['what']}", target, error["hint"], "failed", output)


def _tail(output: IO[bytes]) -> str:
    size = output.seek(0, os.SEEK_END)
    output.seek(max(0, size - _TAIL_BYTES))
    return output.read().decode("utf-8", "replace")


def peak_rss_bytes() -> int:
    """Peak resident memory of this process in bytes; 0 where /proc does not tell.

    `VmHWM` rather than `getrusage`, whose peak is inherited from the parent across fork and exec.
    """
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def _die_with_parent(parent: int) -> None:
    """Be killed when the parent goes, and be the OOM killer's first choice. Best effort, Linux only."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500", encoding="ascii")


def main() -> None:
    """The child: run the function named on the command line with the arguments on standard input."""
    target, descriptor, parent = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    _die_with_parent(parent)
    os.set_inheritable(descriptor, False)
    with os.fdopen(descriptor, "w", encoding="utf-8") as pipe:

        def write(message: dict[str, Json]) -> None:
            pipe.write(json.dumps(message) + "\n")
            pipe.flush()

        try:
            module, _, function = target.partition(":")
            call = getattr(importlib.import_module(module), function)
            value = call(lambda message: write({"message": message}), **json.load(sys.stdin))
            write({"result": value, "peak_rss_bytes": peak_rss_bytes()})
        except EdgeVLMError as error:
            write({"error": _describe(type(error), error.what, error.where, error.hint)})
        except MemoryError:
            write({"error": _describe(EngineError, "out of memory", target, "close other programs")})
        except Exception as error:
            traceback.print_exc()
            write({"error": _describe(type(error), str(error), target, "")})


def _describe(cls: type[BaseException], what: str, where: str, hint: str) -> dict[str, str]:
    return {"class": cls.__name__, "what": what, "where": where, "hint": hint}
