"""Watches a worker from outside: resident memory of its process tree, and who else used the CPU meanwhile.

A thread of the parent samples every 20 ms, so a peak inside one call is seen. Proportional set size walks page tables
in the kernel and would disturb the timing, so it is read once a second. The kernel's own high-water mark of the main
process catches what falls between two samples.
"""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path
from types import TracebackType

import psutil

from edgevlm.bench.report import Memory

INTERVAL_S = 0.02
_PSS_INTERVAL_S = 1.0


class TreeWatch:
    """Samples the process tree under `pid` while the `with` block runs."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="tree-watch", daemon=True)
        self._peak_rss = 0
        self._peak_pss = 0
        self._samples = 0
        self.loaded_rss: int | None = None

    def __enter__(self) -> TreeWatch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def mark_loaded(self) -> None:
        """Remember the resident memory of this moment."""
        self.loaded_rss = _tree_rss(self._pid) or None

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
        )

    def _watch(self) -> None:
        next_pss = time.monotonic()
        while not self._stop.wait(INTERVAL_S):
            self._peak_rss = max(self._peak_rss, _tree_rss(self._pid), _high_water_mark(self._pid))
            self._samples += 1
            if time.monotonic() >= next_pss:
                self._peak_pss = max(self._peak_pss, _tree_pss(self._pid))
                next_pss = time.monotonic() + _PSS_INTERVAL_S


class CpuShare:
    """Share of the machine's CPU time that processes other than the tree under `pid` (and this one) use."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._start = self._read()

    def others(self) -> float | None:
        """The share since construction, 0 to 1; None where the interval was too short to tell."""
        total, busy, own = (now - then for now, then in zip(self._read(), self._start, strict=True))
        return min(1.0, max(0.0, (busy - own) / total)) if total >= 1.0 else None

    def _read(self) -> tuple[float, float, float]:
        """CPU seconds since boot of all kinds, those in use, and those of the tree and this process."""
        times = psutil.cpu_times()
        waiting = times.idle + getattr(times, "iowait", 0.0)
        total = sum(
            getattr(times, name, 0.0) for name in ("user", "nice", "system", "idle", "iowait", "irq", "softirq")
        )
        own = 0.0
        for process in (*_tree(self._pid), psutil.Process()):
            with contextlib.suppress(psutil.Error):
                used = process.cpu_times()
                own += used.user + used.system
        return total, total - waiting, own


def _tree(pid: int) -> list[psutil.Process]:
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.Error:
        return []


def _tree_rss(pid: int) -> int:
    total = 0
    for process in _tree(pid):
        with contextlib.suppress(psutil.Error):
            total += int(process.memory_info().rss)
    return total


def _tree_pss(pid: int) -> int:
    """0 where the system does not tell."""
    total = 0
    for process in _tree(pid):
        total += _kilobytes(Path(f"/proc/{process.pid}/smaps_rollup"), "Pss:")
    return total


def _high_water_mark(pid: int) -> int:
    """Peak resident bytes of one process by the kernel's count; 0 where it does not tell."""
    return _kilobytes(Path(f"/proc/{pid}/status"), "VmHWM:")


def _kilobytes(file: Path, label: str) -> int:
    with contextlib.suppress(OSError):
        for line in file.read_text(encoding="ascii").splitlines():
            if line.startswith(label):
                return int(line.split()[1]) * 1024
    return 0
