"""Memory is seen from outside, in the children too, and a peak that has passed is not forgotten."""

import subprocess
import sys

from edgevlm.bench.memory import TreeWatch

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


def test_process_that_is_gone_has_no_memory() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    with TreeWatch(process.pid) as watch:
        watch.mark_loaded()
    assert watch.memory() is None
