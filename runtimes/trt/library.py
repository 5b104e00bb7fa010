"""The two TensorRT libraries, `tensorrt` and `tensorrt_rtx`, and the GPU they would run on.

In: a library's name. Out: its Python module, or three lines that say why it cannot be used. Both have the same Python
interface as far as EdgeVLM needs it; nothing is imported before it is asked for.
"""

from __future__ import annotations

import collections
import importlib
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from edgevlm.errors import EngineError
from edgevlm.targets.profile import version_tuple

Library: TypeAlias = Literal["tensorrt", "tensorrt_rtx"]
LIBRARIES: tuple[Library, ...] = ("tensorrt", "tensorrt_rtx")
#: Where L4T, the system of Jetson boards, says its release.
L4T_RELEASE = Path("/etc/nv_tegra_release")
_INSTALL: dict[Library, str] = {
    "tensorrt": "on a Jetson it comes with JetPack (docs/jetson.md); elsewhere: pip install 'edgevlm[tensorrt]'",
    "tensorrt_rtx": "pip install --no-build-isolation 'edgevlm[rtx]'",
}
_KEPT_LINES = 5


@dataclass(frozen=True)
class Gpu:
    """A CUDA device: its name, its compute capability, and its memory in bytes."""

    name: str
    compute_capability: tuple[int, int]
    memory_bytes: int


def installed(library: Library) -> bool:
    """Whether the library's Python package is there; it is not loaded."""
    return importlib.util.find_spec(library) is not None


def load_library(library: Library) -> Any:
    """The library's module.

    Raises:
        EngineError: it is not installed, or its shared libraries do not load here.
    """
    try:
        return importlib.import_module(library)
    # Loading its shared libraries fails in several ways.
    except (ImportError, OSError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise EngineError(f"{library} cannot be loaded: {reason}", library, _INSTALL[library]) from error


def library_version(library: Library) -> str:
    """The library's version, such as `10.3.0`.

    Raises:
        EngineError: it is not installed, or does not load.
    """
    return str(load_library(library).__version__)


def numeric_version(text: str) -> tuple[int, ...]:
    """The leading numbers of a library's version: `10.3.0.post1` as (10, 3, 0)."""
    match = re.match(r"\d+(\.\d+)*", text)
    return version_tuple(match.group()) if match else ()


def l4t_release() -> str:
    """The release of L4T on a Jetson, such as `36.4.3`; empty elsewhere."""
    try:
        text = L4T_RELEASE.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    match = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", text)
    return f"{match.group(1)}.{match.group(2)}" if match else ""


def open_log(trt: Any) -> tuple[Any, collections.deque[str]]:
    """A logger for the library that prints nothing, and the last warnings and errors that it was given."""
    lines: collections.deque[str] = collections.deque(maxlen=_KEPT_LINES)

    class Quiet(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR:
                lines.append(" ".join(message.split())[:300])

    return Quiet(), lines
