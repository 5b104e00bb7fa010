"""Memory is seen from outside, in the children too, and a peak that has passed is not forgotten."""

import os
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from edgevlm.bench import memory as module
from edgevlm.bench.memory import INTERVAL_S, TreeWatch

_BLOCK = 120_000_000
_SCRIPT = f"""
import subprocess, sys
child = subprocess.run([sys.executable, "-c", '''
block = bytearray({_BLOCK})
block[::4096] = b"x" * len(block[::4096])
import sys
sys.stdout.write("full")
sys.stdout.flush()
sys.stdin.read(1)
'''], stdin=sys.stdin)
sys.stdin.read()
"""


def test_peak_of_a_grandchild_outlives_it() -> None:
    command = [sys.executable, "-c", _SCRIPT]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        with TreeWatch(process.pid) as watch:
            assert process.stdout.read(4) == b"full"
            watch.mark_loaded()
            while watch.memory() is None:
                pass
            process.communicate(b"x")
        memory = watch.memory()
    assert memory is not None
    assert memory.loaded_rss_bytes is not None
    assert _BLOCK < memory.loaded_rss_bytes <= memory.peak_rss_bytes < 4 * _BLOCK
    assert memory.peak_pss_bytes is None or memory.peak_pss_bytes < memory.peak_rss_bytes * 1.05


def cpu_seconds(call: Callable[[], object], times: int) -> float:
    start = time.process_time()
    for _ in range(times):
        call()
    return (time.process_time() - start) / times


def test_watching_takes_less_than_a_hundredth_of_a_core() -> None:
    """CPU time over the interval at which it is spent: a ratio that a busy machine does not change much."""
    watch = TreeWatch(os.getpid())
    pauses: list[float] = []
    slow = cpu_seconds(lambda: pauses.append(watch.look_closely()), 20)
    assert min(pauses) >= 1
    assert cpu_seconds(watch.look, 300) / INTERVAL_S + 20 * slow / sum(pauses) < 0.01


def test_tree_is_the_same_where_the_kernel_lists_no_children(monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        listed = set(module._tree(os.getpid()))
        monkeypatch.setattr(module, "_LISTS_CHILDREN", False)
        assert {os.getpid(), process.pid} <= set(module._tree(os.getpid())) == listed
        process.communicate(b"x")


def test_process_that_is_gone_has_no_memory() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    with TreeWatch(process.pid) as watch:
        watch.mark_loaded()
    assert watch.memory() is None
