"""Functions that tests run in a child process."""

import ctypes
import os
import signal
import sys
from typing import Any

from edgevlm.child import Send
from edgevlm.errors import InputError


def add(send: Send, a: int, b: int) -> int:
    print("noise on standard output")
    os.write(2, b'{"result": 0}\n')
    send({"share": 0.5})
    return a + b


def segfault(_send: Send) -> None:
    ctypes.string_at(0)


def kill_itself(_send: Send) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def leave(_send: Send) -> None:
    sys.stderr.write("the reason\n")
    os._exit(3)


def hang(send: Send) -> None:
    send(os.getpid())
    signal.pause()


def hang_with_grandchild(send: Send) -> None:
    pid = os.fork()
    if pid:
        send(pid)
    signal.pause()


def refuse(_send: Send) -> None:
    raise InputError("bad thing", "the place", "do better")


def fail(_send: Send) -> None:
    raise ValueError("unexpected")


def crash_after_answer(_send: Send) -> str:
    import atexit

    atexit.register(ctypes.string_at, 0)
    return "answer"


def unserializable(_send: Send) -> Any:
    return object()


def parent_of_hanging(send: Send) -> None:
    """Start a hanging child of its own, tell its pid, and wait for it."""
    from edgevlm.child import run_child

    run_child("child_targets:hang", {}, timeout=60, on_message=send)


def crash_in_fast_kernels(_send: Send, repack: bool) -> dict[str, Any]:
    if repack:
        ctypes.string_at(0)
    return {"version": "1", "flags": "CPU: AVX2"}


def disagree(_send: Send, repack: bool) -> dict[str, Any]:
    return {"version": "1", "flags": f"CPU: repack {repack}", "agreement": float("nan")}


def built_for_less(_send: Send, repack: bool) -> dict[str, Any]:
    return {"version": "1", "flags": f"CPU: AVX2 AVX512_VNNI repack {repack}", "agreement": 1.0}


def segfault_whatever(_send: Send, **_arguments: Any) -> None:
    ctypes.string_at(0)


def refuse_whatever(_send: Send, **_arguments: Any) -> None:
    raise InputError("bad thing")
