"""Reads temperatures, clocks and throttling that Linux itself shows, on any board: no power.

Thermal zones, cpufreq, devfreq, the processor's counters of thermal throttling, and cooling devices that hold clocks
back.
"""

from __future__ import annotations

from pathlib import Path

from edgevlm.targets.sensors.base import About, Reading, SensorError
from edgevlm.targets.sensors.sysfs import int_or_none, numbered, text_or_none

NAME = "linux"
_INTERVAL_S = 1.0
#: What an offline zone reads, in degrees.
_OFFLINE_C = -200.0
#: Cooling devices that slow something down; fans do not.
_BRAKES = ("thermal-cpufreq", "cpufreq", "thermal-devfreq", "devfreq", "Processor")
#: hwmon drivers of processors that have no thermal zone.
_CHIPS = ("k10temp",)


class Linux:
    """What this kernel shows."""

    def __init__(self, root: Path) -> None:
        """Find it under `root`.

        Raises:
            SensorError: it shows no temperature and no clock.
        """
        self._zones = _zones(root)
        self._clocks = _clocks(root)
        self._brakes = [
            (text_or_none(folder / "type") or folder.name, folder / "cur_state")
            for folder in sorted(root.glob("sys/class/thermal/cooling_device*"))
            if (text_or_none(folder / "type") or "").startswith(_BRAKES)
        ]
        self._counters = sorted(root.glob("sys/devices/system/cpu/cpu*/thermal_throttle/*_throttle_count"))
        self._counted = self._count()
        if not self._read(self._zones, 1e3) and not self._clocks:
            raise SensorError("the kernel shows neither temperatures nor clocks", "", "absent")
        self.about = About(NAME, "", (), (), _INTERVAL_S)

    def sample(self) -> Reading:
        """Temperatures, clocks and throttling; a zone that is switched off is left out."""
        celsius = self._read(self._zones, 1e3)
        megahertz: dict[str, float] = {}
        for name, file, unit in self._clocks:
            value = int_or_none(file)
            if value is not None:
                megahertz[name] = max(megahertz.get(name, 0.0), value / unit)
        if not celsius and not megahertz:
            raise SensorError("temperatures and clocks have gone from /sys", "", "absent")
        held = [name for name, file in self._brakes if (int_or_none(file) or 0) > 0]
        before, self._counted = self._counted, self._count()
        counted = ["thermal throttling counted by the processor"] if self._counted > before else []
        return Reading(celsius=celsius, megahertz=megahertz, throttled=(*counted, *(f"{name} cools" for name in held)))

    def close(self) -> None:
        """Nothing is held."""

    def _count(self) -> int:
        return sum(int_or_none(file) or 0 for file in self._counters)

    @staticmethod
    def _read(files: list[tuple[str, Path]], unit: float) -> dict[str, float]:
        values = [(name, int_or_none(file)) for name, file in files]
        return {name: value / unit for name, value in values if value is not None and value / unit > _OFFLINE_C}


def _zones(root: Path) -> list[tuple[str, Path]]:
    """Names and files of all temperatures, in thousandths of a degree."""
    folders = sorted(root.glob("sys/class/thermal/thermal_zone*"))
    found = [(text_or_none(folder / "type") or folder.name, folder / "temp") for folder in folders]
    for chip in sorted(root.glob("sys/class/hwmon/hwmon*")):
        name = text_or_none(chip / "name")
        if name in _CHIPS:
            found.append((name, chip / "temp1_input"))
    # PMIC's zone on Jetsons is a constant, not a measurement.
    found = [(name, file) for name, file in found if not name.startswith("PMIC")]
    return list(zip(numbered(name for name, _ in found), (file for _, file in found), strict=True))


def _clocks(root: Path) -> list[tuple[str, Path, float]]:
    """Name, file and units per MHz of all clocks. Cores with one top speed share a name; the fastest counts."""
    policies = sorted(root.glob("sys/devices/system/cpu/cpufreq/policy*"))
    tops = {policy: int_or_none(policy / "cpuinfo_max_freq") or 0 for policy in policies}
    several = len(set(tops.values())) > 1
    found = [
        (f"cpu up to {tops[policy] // 1000} MHz" if several else "cpu", policy / "scaling_cur_freq", 1e3)
        for policy in policies
    ]
    for device in sorted(root.glob("sys/class/devfreq/*")):
        if "gpu" in device.name or "ga10b" in device.name:
            found.append((device.name, device / "cur_freq", 1e6))
    return [(name, file, unit) for name, file, unit in found if int_or_none(file) is not None]
