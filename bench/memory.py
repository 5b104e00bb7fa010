"""Watches a worker from outside: resident memory of its process tree, and who else used the CPU meanwhile.

A thread of the parent samples every 50 ms, so a peak inside one call is seen. Proportional set size walks page tables
in the kernel, the longer the more memory there is, so it is read once a second or less often, and so is the list of
processes. The kernel's own high-water mark of the main process catches what falls between two samples. All this takes
less than a hundredth of one core.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import psutil

from edgevlm.bench.gpu_memory import GpuWatch
from edgevlm.bench.report import Memory

INTERVAL_S = 0.05
_SLOW_INTERVAL_S = 1.0
#: What is slow to read takes no more than this share of a core.
_SLOW_SHARE = 0.005
#: Whether the kernel lists children; otherwise every process of the system has to be looked at.
_LISTS_CHILDREN = any(Path("/proc/self/task").glob("*/children"))
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0


class TreeWatch:
    """Samples the process tree under `pid` while the `with` block runs; `gpu` looks at the GPU's memory."""

    def __init__(self, pid: int, gpu: GpuWatch | None = None) -> None:
        self._pid = pid
        self._gpu = gpu or GpuWatch()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="tree-watch", daemon=True)
        self._pids = [pid]
        self._peak_rss = 0
        self._peak_pss = 0
        self._samples = 0
        self._steady: list[int] = []
        self.loaded_rss: int | None = None

    def __enter__(self) -> TreeWatch:
        self._gpu.__enter__()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._gpu.__exit__(kind, error, trace)

    def mark_loaded(self) -> None:
        """Remember the resident memory of this moment."""
        self.loaded_rss = _rss(_tree(self._pid)) or None

    def mark_answer(self) -> None:
        """Remember the resident memory behind a steady answer."""
        self._steady.append(_rss(self._pids))
        self._peak_rss = max(self._peak_rss, _high_water_mark(self._pid))

    def memory(self) -> Memory | None:
        """What was seen, or None where nothing was."""
        peak_rss = max(self._peak_rss, self.loaded_rss or 0)
        if not peak_rss:
            return None
        return Memory(
            peak_rss_bytes=peak_rss,
            peak_pss_bytes=self._peak_pss or None,
            loaded_rss_bytes=self.loaded_rss,
            interval_ms=INTERVAL_S * 1000,
            samples=self._samples,
            steady_rss_bytes=self._steady,
            peak_gpu_bytes=self._gpu.peak_process,
            peak_gpu_device_bytes=self._gpu.peak_device,
            peak_unified_bytes=self._gpu.peak_unified,
        )

    def _watch(self) -> None:
        next_slow = time.monotonic()
        while not self._stop.wait(INTERVAL_S):
            if time.monotonic() >= next_slow:
                next_slow = time.monotonic() + self.look_closely()
            self.look()

    def look(self) -> None:
        """Read the resident memory."""
        self._peak_rss = max(self._peak_rss, _rss(self._pids))
        self._gpu.look(self._pids)
        self._samples += 1

    def look_closely(self) -> float:
        """Find the processes anew, and read what is slow to read; the seconds to wait until the next time."""
        start = time.thread_time()
        self._pids = _tree(self._pid)
        self._peak_pss = max(self._peak_pss, _pss(self._pids))
        self._peak_rss = max(self._peak_rss, _high_water_mark(self._pid))
        return max(_SLOW_INTERVAL_S, (time.thread_time() - start) / _SLOW_SHARE)


class CpuShare:
    """Who uses the CPU from construction on: processes other than the tree under `pid` and this one, or this one."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._began = time.monotonic()
        self._start = self._read()

    def shares(self) -> tuple[float | None, float | None]:
        """Of others, as a share of the machine's CPU time, and of this process, in CPU seconds per second.

        None where the interval was too short to tell.
        """
        total, busy, own, this = (now - then for now, then in zip(self._read(), self._start, strict=True))
        seconds = time.monotonic() - self._began
        others = min(1.0, max(0.0, (busy - own) / total)) if total >= 1.0 else None
        return others, this / seconds if seconds >= 1.0 else None

    def _read(self) -> tuple[float, float, float, float]:
        """CPU seconds since boot of all kinds and those in use; since their start those of both and of this process."""
        times = psutil.cpu_times()
        waiting = times.idle + getattr(times, "iowait", 0.0)
        total = sum(
            getattr(times, name, 0.0) for name in ("user", "nice", "system", "idle", "iowait", "irq", "softirq")
        )
        own = this = _cpu_seconds(os.getpid())
        own += sum(map(_cpu_seconds, _tree(self._pid)))
        return total, total - waiting, own, this


def _cpu_seconds(pid: int) -> float:
    with contextlib.suppress(psutil.Error):
        used = psutil.Process(pid).cpu_times()
        return float(used.user + used.system)
    return 0.0


def _tree(pid: int) -> list[int]:
    """The process and all below it."""
    if not _LISTS_CHILDREN:
        with contextlib.suppress(psutil.Error):
            return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
        return [pid]
    found, left = [], [pid]
    while left:
        found.append(left.pop())
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{found[-1]}/task").iterdir():
                left += map(int, (task / "children").read_bytes().split())
    return found


def _rss(pids: Sequence[int]) -> int:
    """Resident bytes; through /proc where there is one, which takes a tenth of the time."""
    total = 0
    for pid in pids:
        try:
            total += int(Path(f"/proc/{pid}/statm").read_bytes().split()[1]) * _PAGE_BYTES
        except OSError:
            with contextlib.suppress(psutil.Error):
                total += int(psutil.Process(pid).memory_info().rss)
    return total


def _pss(pids: Sequence[int]) -> int:
    """0 where the system does not tell."""
    return sum(_kilobytes(Path(f"/proc/{pid}/smaps_rollup"), "Pss:") for pid in pids)


def _high_water_mark(pid: int) -> int:
    """Peak resident bytes of one process by the kernel's count; 0 where it does not tell."""
    return _kilobytes(Path(f"/proc/{pid}/status"), "VmHWM:")


def _kilobytes(file: Path, label: str) -> int:
    with contextlib.suppress(OSError):
        for line in file.read_text(encoding="ascii").splitlines():
            if line.startswith(label):
                return int(line.split()[1]) * 1024
    return 0
