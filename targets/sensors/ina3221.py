"""Reads the power monitors (INA3221) of a Jetson from sysfs: no root, no service, no tool.

JetPack 5 and later show them as hwmon devices with millivolts and milliamperes, JetPack 4 as iio devices with
milliwatts.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgevlm.targets.sensors.base import About, Reading, SensorError
from edgevlm.targets.sensors.rails import covers, total_rails
from edgevlm.targets.sensors.sysfs import int_or_none, numbered, read_int, text_or_none

#: The chip's own sum over its shunts, which is no rail.
_SUM_CHANNEL = 7


@dataclass(frozen=True)
class _Rail:
    """Files of one rail: volts and amperes (in thousandths), or watts (likewise); and an alarm, where it has one."""

    name: str
    volts: Path
    amperes: Path
    watts: Path | None = None
    alarm: Path | None = None

    def power(self) -> float:
        """Watts at this moment."""
        if self.watts is not None:
            return read_int(self.watts) / 1e3
        return read_int(self.volts) * read_int(self.amperes) / 1e6


class Ina3221:
    """The monitors of one board."""

    def __init__(self, root: Path) -> None:
        """Find the rails under `root`, and read each once.

        Raises:
            SensorError: there is no such monitor, or it cannot be read.
        """
        self._rails = _find(root)
        if not self._rails:
            raise SensorError("no INA3221 power monitor on the I2C bus", "", "absent")
        names = tuple(rail.name for rail in self._rails)
        self.about = About("ina3221", covers(names), names, total_rails(names), 0.1)
        self.sample()

    def sample(self) -> Reading:
        """Watts of every rail."""
        alarms = [rail.name for rail in self._rails if rail.alarm and int_or_none(rail.alarm) == 1]
        return Reading(
            watts={rail.name: rail.power() for rail in self._rails},
            throttled=tuple(f"{name} beyond its critical current" for name in alarms),
        )

    def close(self) -> None:
        """Nothing is held."""


def _find(root: Path) -> list[_Rail]:
    found: list[tuple[str, Path, int, bool]] = []
    for name in sorted(root.glob("sys/bus/i2c/devices/*/name")):
        if "ina3221" not in (text_or_none(name) or ""):
            continue
        for monitor in sorted(name.parent.glob("hwmon/hwmon*")):
            for label, channel in _labels(monitor, "in", "_label"):
                if channel != _SUM_CHANNEL:
                    found.append((label, monitor, channel, False))
        for monitor in sorted(name.parent.glob("iio:device*")):
            found += [(label, monitor, channel, True) for label, channel in _labels(monitor, "rail_name_", "")]
    used = [each for each in found if "NC" not in each[0].upper().split("_")]
    names = numbered(label for label, *_ in used)
    return [
        _iio(name, folder, channel) if iio else _hwmon(name, folder, channel)
        for name, (_, folder, channel, iio) in zip(names, used, strict=True)
    ]


def _labels(folder: Path, before: str, behind: str) -> list[tuple[str, int]]:
    """Labels of the channels of a monitor, with their numbers."""
    found = []
    for file in sorted(folder.glob(f"{before}*{behind}")):
        number = file.name[len(before) : len(file.name) - len(behind)]
        label = text_or_none(file)
        if number.isdecimal() and label:
            found.append((label, int(number)))
    return found


def _hwmon(name: str, folder: Path, channel: int) -> _Rail:
    volts, amperes = folder / f"in{channel}_input", folder / f"curr{channel}_input"
    return _Rail(name, volts, amperes, alarm=folder / f"curr{channel}_crit_alarm")


def _iio(name: str, folder: Path, channel: int) -> _Rail:
    volts, amperes = folder / f"in_voltage{channel}_input", folder / f"in_current{channel}_input"
    watts = folder / f"in_power{channel}_input"
    return _Rail(name, volts, amperes, watts if watts.is_file() else None)
