"""GPU memory is asked of NVML from a process of its own, and what no driver tells is missing, not zero."""

import os
from pathlib import Path

import pytest
from sensor_trees import write

from edgevlm.bench.gpu_memory import GpuWatch, shares_memory
from edgevlm.bench.memory import TreeWatch

#: Two GPUs: the worker is on both, somebody else on the second; the driver says nothing of a third process.
_NVML = """
import itertools
from types import SimpleNamespace as S
OWN = int({own})
looks = itertools.count()
class NVMLError(Exception): pass
def nvmlInit(): pass
def nvmlDeviceGetCount(): return 2
def nvmlDeviceGetHandleByIndex(index): return index
def nvmlDeviceGetComputeRunningProcesses(handle):
    return [S(pid=OWN, usedGpuMemory=3000 + handle), S(pid=1, usedGpuMemory=50), S(pid=2, usedGpuMemory=None)]
def nvmlDeviceGetGraphicsRunningProcesses(handle): return [S(pid=OWN, usedGpuMemory=3000 + handle)]
def nvmlDeviceGetMemoryInfo(handle):
    if next(looks) > {until}: raise NVMLError("lost")
    return S(used=10_000 if next(looks) < 4 else 40_000)
"""


def machine(folder: Path, monkeypatch: pytest.MonkeyPatch, until: int = 1000) -> Path:
    write(folder, {"proc/driver/nvidia/version": "NVRM", "pynvml.py": _NVML.format(own=os.getpid(), until=until)})
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return folder


def test_peaks_are_of_the_worker_s_processes_and_of_the_devices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = GpuWatch(machine(tmp_path, monkeypatch))
    with TreeWatch(os.getpid(), watch) as tree:
        while not watch.peak_device:
            pass
        memory = tree.memory()
    assert memory is not None
    assert memory.peak_gpu_bytes == 6001
    assert memory.peak_gpu_device_bytes == 60_000
    assert memory.peak_unified_bytes is None


def test_machine_without_a_driver_tells_nothing(tmp_path: Path) -> None:
    with GpuWatch(tmp_path) as watch:
        watch.look({os.getpid()})
    assert (watch.peak_process, watch.peak_device, watch.peak_unified) == (None, None, None)


def test_driver_that_fails_does_not_stop_the_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with GpuWatch(machine(tmp_path, monkeypatch, until=-1)) as watch:
        watch._thread.join()
        watch.look({os.getpid()})
    assert watch.peak_device is None


def test_memory_that_cpu_and_gpu_share_is_the_system_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, {"proc/device-tree/compatible": "nvidia,p3767-0005\0nvidia,tegra234"})
    assert shares_memory(tmp_path)
    available = iter([900, 400, 700])

    class Memory:
        total = 1000

        def __init__(self) -> None:
            self.available = next(available)

    monkeypatch.setattr("psutil.virtual_memory", Memory)
    with GpuWatch(tmp_path) as watch:
        for _ in range(3):
            watch.look(())
    assert watch.peak_unified == 500
