"""Reads the energy counters (RAPL) of Intel and AMD processors from sysfs.

They count microjoules and start again at zero beyond a value that sysfs names. Since Linux 5.10 only root may read
them, as the energy of a computation says something about its data (CVE-2020-8694).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgevlm.targets.sensors.base import About, Reading, SensorError
from edgevlm.targets.sensors.sysfs import numbered, read_int, text_or_none

_HINT = "run as root, or: sudo chmod a+r /sys/class/powercap/intel-rapl:*/energy_uj"


@dataclass
class _Zone:
    """A counter, how far it counts, what it read last, and how often it has started again."""

    name: str
    file: Path
    range_uj: int
    last_uj: int = 0
    turns: int = 0

    def joules(self) -> float:
        """Energy since the counter was first at zero."""
        now = read_int(self.file)
        if now < self.last_uj:
            self.turns += 1
        self.last_uj = now
        return (self.turns * self.range_uj + now) / 1e6


class Rapl:
    """The counters of all packages."""

    def __init__(self, root: Path) -> None:
        """Find the counters under `root` and read each once.

        Raises:
            SensorError: there are none, or this user may not read them.
        """
        folders = sorted(root.glob("sys/class/powercap/intel-rapl:*"))
        if not folders:
            raise SensorError("no RAPL counters in /sys/class/powercap", "", "absent")
        names = {folder.name: text_or_none(folder / "name") or folder.name for folder in folders}
        full = numbered(_full_name(folder.name, names) for folder in folders)
        try:
            self._zones = [
                _Zone(name, folder / "energy_uj", read_int(folder / "max_energy_range_uj"))
                for name, folder in zip(full, folders, strict=True)
            ]
            self.sample()
        except SensorError as error:
            if error.state == "forbidden":
                raise SensorError("RAPL counters may be read by root only", error.where, "forbidden", _HINT) from error
            raise
        rails = tuple(zone.name for zone in self._zones)
        total = tuple(name for name in rails if "/dram" in name or (name.startswith("package-") and "/" not in name))
        memory = " and memory" if any("/dram" in name for name in total) else ""
        said = f"the processor{memory}, without the rest of the board" if total else "single rails of the processor"
        self.about = About("rapl", said, rails, total, 0.1)

    def sample(self) -> Reading:
        """Joules that every counter has counted."""
        return Reading(joules={zone.name: zone.joules() for zone in self._zones})

    def close(self) -> None:
        """Nothing is held."""


def _full_name(folder: str, names: dict[str, str]) -> str:
    """`package-0`, or `package-0/dram` for a part of it."""
    parent = folder.rpartition(":")[0]
    return f"{names[parent]}/{names[folder]}" if parent in names else names[folder]
