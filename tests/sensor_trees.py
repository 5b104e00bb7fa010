"""Made-up trees of /sys with sensors in them."""

import os
import sys
from pathlib import Path

import pytest

MONITOR = "sys/bus/i2c/devices/1-0040"


def write(root: Path, files: dict[str, object]) -> Path:
    """Write each file under `root` with its text and a line feed."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n", encoding="utf-8")
    return root


def alone(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let the made-up tree be all that processes see: no vendor's tool or package of this machine, nor its GPU."""
    for package in ("pynvml", "jtop"):
        write(folder, {f"hidden/{package}.py": "raise ImportError"})
        patch.setitem(sys.modules, package, None)
    patch.setenv("PATH", str(folder))
    patch.setenv("PYTHONPATH", os.pathsep.join([str(folder / "hidden"), str(Path(__file__).parent)]))


def orin_nano(root: Path) -> Path:
    """An Orin Nano with JetPack 6 that draws 6 W: VDD_IN and two parts of it, an unused channel, the sum of shunts."""
    monitor = f"{MONITOR}/hwmon/hwmon1"
    files: dict[str, object] = {f"{MONITOR}/name": "ina3221", f"{monitor}/name": "ina3221"}
    for channel, label, millivolts, milliamperes in (
        (1, "VDD_IN", 5000, 1200),
        (2, "VDD_CPU_GPU_CV", 5000, 400),
        (3, "VDD_SOC", 5000, 300),
        (4, "NC", 5000, 9999),
        (7, "sum of shunt voltages", 5000, 9999),
    ):
        files[f"{monitor}/in{channel}_label"] = label
        files[f"{monitor}/in{channel}_input"] = millivolts
        files[f"{monitor}/curr{channel}_input"] = milliamperes
        files[f"{monitor}/curr{channel}_crit_alarm"] = 0
    return write(root, {**files, "sys/bus/i2c/devices/2-0041/name": "tmp451"})


def x86(root: Path) -> Path:
    """A processor with a package counter, its cores and its memory, and a thermal zone."""
    zones = {"intel-rapl:0": "package-0", "intel-rapl:0:0": "core", "intel-rapl:0:1": "dram", "intel-rapl:1": "psys"}
    files: dict[str, object] = {}
    for folder, name in zones.items():
        files[f"sys/class/powercap/{folder}/name"] = name
        files[f"sys/class/powercap/{folder}/energy_uj"] = 1_000_000
        files[f"sys/class/powercap/{folder}/max_energy_range_uj"] = 262_143_328_850
    files["sys/class/powercap/intel-rapl-mmio:0/name"] = "package-0"
    files["sys/class/thermal/thermal_zone0/type"] = "x86_pkg_temp"
    files["sys/class/thermal/thermal_zone0/temp"] = 45000
    return write(root, files)
