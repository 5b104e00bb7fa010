"""Memory of NVIDIA GPUs while a worker runs: what its processes hold, and what is in use on the GPUs at all.

NVML is native code in somebody else's hands, so a child process asks it and sends what it sees; where there is no
driver none is started. Jetsons have no memory of the GPU's own: there the memory in use by the whole system is read,
which holds what the GPU uses, unlike the resident set of a process.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from edgevlm.child import Json, Send, run_child
from edgevlm.errors import EdgeVLMError

#: What the child runs.
TARGET = "edgevlm.bench.gpu_memory:serve"
_INTERVAL_S = 0.1
_SILENCE_S = 15.0
_DRIVER = "proc/driver/nvidia/version"
_BOARD = "proc/device-tree/compatible"


@dataclass(frozen=True)
class GpuUse:
    """One look: bytes by process, where the driver tells, and bytes in use on all GPUs."""

    processes: dict[int, int]
    device: int


class _StopListening(Exception):  # noqa: N818 (no error: it ends the child)
    pass


class GpuWatch:
    """Looks at the GPUs' memory while the `with` block runs; peaks are of the processes that `look` is told."""

    def __init__(self, root: Path = Path("/"), target: str = TARGET) -> None:
        """Watch the machine under `root`; `target` is the function that the child runs."""
        self._target = target
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="gpu-watch", daemon=True)
        self._asks = (root / _DRIVER).is_file()
        self._shares = shares_memory(root)
        self._last: GpuUse | None = None
        self._device: list[int] = []
        self._system: list[int] = []
        self.peak_process: int | None = None

    def __enter__(self) -> GpuWatch:
        if self._asks and not self._shares:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()

    def look(self, pids: Collection[int]) -> None:
        """Take what was last seen into the peaks."""
        if self._shares:
            memory = psutil.virtual_memory()
            self._widen(self._system, memory.total - memory.available)
        seen = self._last
        if seen is None:
            return
        self._widen(self._device, seen.device)
        own = [size for pid, size in seen.processes.items() if pid in pids]
        if own:
            self.peak_process = max(self.peak_process or 0, sum(own))

    @property
    def peak_device(self) -> int | None:
        """Most bytes in use on the GPUs less the fewest; None where that is not known."""
        return self._device[1] - self._device[0] if self._device else None

    @property
    def peak_unified(self) -> int | None:
        """The same of the memory that CPU and GPU share; None where they do not."""
        return self._system[1] - self._system[0] if self._system else None

    @staticmethod
    def _widen(ends: list[int], value: int) -> None:
        ends[:] = [min([*ends, value]), max([*ends, value])]

    def _listen(self) -> None:
        try:
            run_child(self._target, {}, timeout=_SILENCE_S, on_message=self._hear)
        except (_StopListening, EdgeVLMError):
            self._last = None

    def _hear(self, raw: Json) -> None:
        if self._stop.is_set():
            raise _StopListening
        self._last = GpuUse({int(pid): int(size) for pid, size in raw["processes"].items()}, int(raw["device"]))


def shares_memory(root: Path = Path("/")) -> bool:
    """Whether this is a Jetson, whose GPU has no memory of its own."""
    try:
        return "tegra" in (root / _BOARD).read_text(encoding="ascii", errors="replace")
    except OSError:
        return False


def serve(send: Send) -> None:
    """Entry point of the child: send what NVML sees, until it fails or the parent stops listening."""
    nvml: Any = importlib.import_module("pynvml")
    try:
        nvml.nvmlInit()
        handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
        pause = threading.Event()
        while True:
            send(_look(nvml, handles))
            pause.wait(_INTERVAL_S)
    except nvml.NVMLError as error:
        raise EdgeVLMError(f"NVML: {error}", "the GPU's memory", "run `edgevlm doctor`") from error


def _look(nvml: Any, handles: list[Any]) -> Json:
    """Bytes by process over all GPUs, and bytes in use on them. A process may compute and draw at once."""
    processes: dict[int, int] = {}
    for handle in handles:
        listed = [
            *nvml.nvmlDeviceGetComputeRunningProcesses(handle),
            *nvml.nvmlDeviceGetGraphicsRunningProcesses(handle),
        ]
        for pid, size in {each.pid: each.usedGpuMemory for each in listed if each.usedGpuMemory}.items():
            processes[pid] = processes.get(pid, 0) + size
    return {"processes": processes, "device": sum(nvml.nvmlDeviceGetMemoryInfo(handle).used for handle in handles)}
