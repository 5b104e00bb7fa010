"""What was freed must leave the process."""

import platform

import psutil
import pytest

from edgevlm.heap import trim_heap

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
