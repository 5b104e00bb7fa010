"""Which NVIDIA hardware this machine has: cards through NVML, a Jetson through its device tree and nvpmodel.

In: the machine; files below a root folder that tests replace. Out: what was found, and the profile that describes it.
What cannot be read is left out; nothing here needs root.
"""

from __future__ import annotations

import contextlib
import importlib
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgevlm.targets.catalog import load_target, target_names
from edgevlm.targets.profile import TargetProfile

_L4T = re.compile(r"R(\d+).*REVISION:\s*([\d.]+)")
_MODE = re.compile(r"NV Power Mode:\s*(\S+)\s+(\d+)")
_MEMORY = re.compile(r"MemTotal:\s*(\d+) kB")
#: Where the GPU's clocks are: Orin's names, then Thor's.
_CLOCKS = ("17000000.gpu", "ga10b", "17000000.ga10b", "gpu-gpc-0")
_TIMEOUT_S = 10.0
#: Clocks differ a little between releases.
_CLOCK_TOLERANCE = 0.06


@dataclass(frozen=True)
class Gpu:
    """A card as NVML describes it."""

    name: str
    memory_bytes: int
    compute_capability: tuple[int, int]
    driver: str
    max_clock_mhz: int

    @property
    def target(self) -> str | None:
        """The profile with this name, if there is one."""
        wanted = self.name.lower().replace("nvidia", "").replace("geforce", "").split()
        for name in sorted(target_names(), key=len, reverse=True):
            parts = name.split("-")
            if all(part in wanted for part in parts):
                return name
        return None


@dataclass(frozen=True)
class Jetson:
    """A Jetson as its files describe it; what could not be read is empty or None.

    Attributes:
        model: from the device tree.
        compatible: board ids, from the device tree.
        l4t: such as 36.4.3.
        jetpack: that has this L4T, if a profile knows it.
        mode, mode_id: nvpmodel's power mode.
        memory_bytes: that the system sees.
        max_gpu_mhz: that the current power mode allows.
        target: the profile of this board in this mode.
    """

    model: str
    compatible: tuple[str, ...]
    l4t: str
    jetpack: str
    mode: str
    mode_id: int | None
    memory_bytes: int | None
    max_gpu_mhz: float | None
    target: str | None


def find_gpus() -> list[Gpu]:
    """Cards that NVML sees; none without nvidia-ml-py or a driver."""
    try:
        nvml: Any = importlib.import_module("pynvml")
    except ImportError:
        return []
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return []
    found = []
    try:
        driver = str(nvml.nvmlSystemGetDriverVersion())
        for index in range(nvml.nvmlDeviceGetCount()):
            with contextlib.suppress(nvml.NVMLError):
                handle = nvml.nvmlDeviceGetHandleByIndex(index)
                major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
                found.append(
                    Gpu(
                        name=str(nvml.nvmlDeviceGetName(handle)),
                        memory_bytes=int(nvml.nvmlDeviceGetMemoryInfo(handle).total),
                        compute_capability=(int(major), int(minor)),
                        driver=driver,
                        max_clock_mhz=int(nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM)),
                    )
                )
    except nvml.NVMLError:
        return found
    finally:
        with contextlib.suppress(nvml.NVMLError):
            nvml.nvmlShutdown()
    return found


def find_jetson(root: Path = Path("/"), ask: Callable[[], str] | None = None) -> Jetson | None:
    """The Jetson that this is, or None.

    Args:
        root: where /proc, /etc and /sys are.
        ask: what `nvpmodel -q` prints; None runs it.
    """
    compatible = tuple(part for part in _text(root / "proc/device-tree/compatible").split("\0") if part)
    if not any("tegra" in part or part.startswith("nvidia,p3") for part in compatible):
        return None
    release = _L4T.search(_text(root / "etc/nv_tegra_release"))
    l4t = f"{release[1]}.{release[2]}" if release else ""
    mode = _MODE.search((_nvpmodel if ask is None else ask)())
    total = _MEMORY.search(_text(root / "proc/meminfo"))
    clock = _max_clock(root)
    profiles = _of_board(compatible)
    return Jetson(
        model=_text(root / "proc/device-tree/model").strip("\0 \n"),
        compatible=compatible,
        l4t=l4t,
        jetpack=_jetpack(l4t, profiles),
        mode=mode[1] if mode else "",
        mode_id=int(mode[2]) if mode else None,
        memory_bytes=int(total[1]) * 1024 if total else None,
        max_gpu_mhz=clock,
        target=_nearest(profiles, mode[1] if mode else "", clock),
    )


def _of_board(compatible: Sequence[str]) -> list[TargetProfile]:
    """Profiles whose board this is."""
    profiles = [load_target(name) for name in target_names()]
    return [each for each in profiles if any(board in part for board in each.board_ids for part in compatible)]


def _nearest(profiles: Sequence[TargetProfile], mode: str, clock_mhz: float | None) -> str | None:
    """Of profiles of one board, the one whose GPU clock the power mode allows; without a clock, by the mode's name."""
    if not profiles:
        return None
    if clock_mhz is not None:
        reached = [each for each in profiles if _clock(each) <= clock_mhz * (1 + _CLOCK_TOLERANCE)]
        return (max(reached, key=_clock) if reached else min(profiles, key=_clock)).name
    named = [each for each in profiles if mode.upper().endswith("SUPER") == each.name.endswith("-super")]
    return (named or list(profiles))[0].name


def _clock(profile: TargetProfile) -> float:
    return 0.0 if profile.gpu_clock_ghz is None else 1000 * profile.gpu_clock_ghz.value


def _jetpack(l4t: str, profiles: Sequence[TargetProfile]) -> str:
    for profile in profiles:
        for release in profile.software:
            if release.l4t == l4t and release.jetpack is not None:
                return release.jetpack
    return ""


def _max_clock(root: Path) -> float | None:
    for name in _CLOCKS:
        text = _text(root / "sys/class/devfreq" / name / "max_freq").strip()
        if text.isdigit():
            return int(text) / 1e6
    return None


def _nvpmodel() -> str:
    program = shutil.which("nvpmodel")
    if program is None:
        return ""
    try:
        return subprocess.run([program, "-q"], capture_output=True, text=True, timeout=_TIMEOUT_S, check=False).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8", "replace")
    except OSError:
        return ""
