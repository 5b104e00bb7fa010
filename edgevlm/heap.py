"""Requests to the system about the memory of this process; where it does not know them, nothing happens.

`trim_heap` gives back what a program has freed: the C library (glibc) keeps it in case it is asked again, which after a
large model are gigabytes that nobody else can have. `release_file` does so with what was read of a mapped file.
`huge_pages` moves weights into pages of 2 MB (Linux 6.1 or newer):
decoding reads all of them for every token, and with pages of 4 kB spends a twentieth of its time on looking up where
they are.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

_MAPS = Path("/proc/self/maps")
_HUGE_PAGE_SIZE = Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")
_DONTNEED, _COLLAPSE = 4, 25  # of Linux's madvise
#: Share of a huge page that must be in use already, so that no memory is spent on what never will be.
_IN_USE = 0.9


def trim_heap() -> None:
    """Return the freed heap of this process to the system."""
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def release_file(path: Path) -> None:
    """Let go of what this process has read of a file that it maps read-only; read again, it comes from the file."""
    if sys.platform != "linux" or not _MAPS.is_file():
        return
    libc = ctypes.CDLL(None)
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for start, end, permissions, name in _mappings():
        if name == str(path) and "w" not in permissions:
            libc.madvise(start, end - start, _DONTNEED)


@contextmanager
def huge_pages() -> Iterator[None]:
    """Move the large blocks that the body allocates and fills into huge pages when it ends.

    It takes about a second for each GB.
    """
    if not (sys.platform == "linux" and _HUGE_PAGE_SIZE.is_file() and _MAPS.is_file()):
        yield
        return
    before = _blocks()
    yield
    size, libc = int(_HUGE_PAGE_SIZE.read_text()), ctypes.CDLL(None)
    for function in (libc.mincore, libc.madvise):
        function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
    for start, end in _without(_blocks(), before):
        first, last = -(-start // size), end // size
        if last > first:
            present = np.zeros(((last - first) * size) // mmap.PAGESIZE, np.uint8)
            libc.mincore(first * size, (last - first) * size, present.ctypes.data)
            shares = (present & 1).reshape(last - first, -1).mean(axis=1)
            for index in np.flatnonzero(shares >= _IN_USE):
                libc.madvise((first + int(index)) * size, size, _COLLAPSE)


def _blocks() -> list[tuple[int, int]]:
    """First and last address of the process's own memory, ascending: writable, and no file's."""
    return [(start, end) for start, end, permissions, name in _mappings() if permissions == "rw-p" and not name]


def _mappings() -> Iterator[tuple[int, int, str, str]]:
    """First and last address, permissions, and the file or what else it is (empty for the process's own memory)."""
    for line in _MAPS.read_text().splitlines():
        addresses, permissions, _, _, _, *name = line.split(maxsplit=5)
        start, end = (int(address, 16) for address in addresses.split("-"))
        yield start, end, permissions, "".join(name)


def _without(blocks: list[tuple[int, int]], others: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """What is in `blocks` and not in `others`; both ascend."""
    for start, end in blocks:
        for other_start, other_end in others:
            if other_end <= start or other_start >= end:
                continue
            if other_start > start:
                yield start, other_start
            start = min(other_end, end)
        if end > start:
            yield start, end
