"""What was freed must leave the process, and what was filled must lie in huge pages."""

import mmap
import platform
from pathlib import Path

import numpy as np
import psutil
import pytest

from edgevlm.heap import _without, huge_pages, release_file, trim_heap

SIZE, COUNT = 100_000, 2000


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such request")
def test_freed_blocks_leave_the_process() -> None:
    """Blocks below the size that is mapped on its own, with one that stays on top of them."""
    blocks = [bytes([index % 256]) * SIZE for index in range(COUNT)]
    kept = bytes([7]) * SIZE
    full = psutil.Process().memory_info().rss
    blocks.clear()
    trim_heap()
    assert psutil.Process().memory_info().rss < full - SIZE * COUNT * 0.8
    assert kept[-1] == 7


@pytest.mark.skipif(platform.system() != "Linux", reason="Linux alone has the request")
def test_what_was_read_of_a_mapped_file_leaves_the_process(tmp_path: Path) -> None:
    path = tmp_path / "with a space"
    path.write_bytes(np.arange(32 << 18, dtype=np.uint64).tobytes())
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        values = np.frombuffer(mapped, np.uint64)
        total = values.sum()
        full = psutil.Process().memory_info().rss
        release_file(path)
        assert psutil.Process().memory_info().rss < full - 0.9 * len(mapped)
        assert values.sum() == total
        del values


def in_huge_pages(array: np.ndarray) -> int:
    """Bytes in huge pages of the mapping that holds the middle of an array."""
    mapping = 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head, *rest = line.split()
        if "-" in head and not head.endswith(":"):
            start, end = (int(address, 16) for address in head.split("-"))
            mapping = start <= array.ctypes.data + array.nbytes // 2 < end
        elif head == "AnonHugePages:" and mapping:
            return 1024 * int(rest[0])
    return 0


def block() -> np.ndarray:
    """64 MB that nothing was asked of: numpy's own allocations are in huge pages from the start."""
    return np.frombuffer(mmap.mmap(-1, 64 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), np.uint8)


@pytest.mark.skipif(platform.system() != "Linux", reason="Linux alone has the request")
def test_what_was_filled_lies_in_huge_pages_and_what_was_not_stays_away() -> None:
    """A buffer of which nothing is used yet, such as a long context's, must not take memory."""
    earlier = block()
    earlier.fill(1)
    with huge_pages():
        weights, buffer = block(), block()
        weights[:] = np.arange(len(weights)) % 251
        resident = psutil.Process().memory_info().rss
    if tuple(int(part) for part in platform.release().split("-")[0].split(".")[:2]) >= (6, 1):
        assert in_huge_pages(weights) > 48 << 20
    assert psutil.Process().memory_info().rss < resident + (48 << 20)
    np.testing.assert_array_equal(weights, np.arange(len(weights)) % 251)
    assert not buffer.any()
    assert earlier.all()
    assert in_huge_pages(earlier) <= 64 << 20, "neighbours merge to one mapping, but what was there is somebody else's"


def test_parts_of_blocks() -> None:
    """Neighbouring mappings merge, so that a new block may stand on both sides of an old one."""
    assert list(_without([(0, 10), (20, 30)], [(2, 4), (6, 8), (18, 22), (30, 31)])) == [
        (0, 2),
        (4, 6),
        (8, 10),
        (22, 30),
    ]
    assert list(_without([(5, 6)], [(0, 10)])) == []
