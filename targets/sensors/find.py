"""Opens every sensor of this machine, and says of each why it is or is not there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgevlm.targets.sensors.base import About, SensorError, Source, State
from edgevlm.targets.sensors.ina3221 import Ina3221
from edgevlm.targets.sensors.jtop import Jtop
from edgevlm.targets.sensors.linux import NAME as LINUX
from edgevlm.targets.sensors.linux import Linux
from edgevlm.targets.sensors.nvml import Nvml
from edgevlm.targets.sensors.rapl import Rapl
from edgevlm.targets.sensors.tegrastats import Tegrastats
from edgevlm.targets.sensors.vcgencmd import Vcgencmd

#: Sources by name. Those of one group read the same chips: the first that works is taken, as it costs the least.
GROUPS: tuple[dict[str, Callable[[Path], Source]], ...] = (
    {"ina3221": Ina3221, "tegrastats": lambda _root: Tegrastats(), "jtop": lambda _root: Jtop()},
    {"vcgencmd": lambda _root: Vcgencmd()},
    {"nvml": Nvml},
    {"rapl": Rapl},
    {LINUX: Linux},
)


@dataclass(frozen=True)
class Found:
    """What became of one source.

    Attributes:
        name: of the source.
        state: whether it can be read.
        reason: why not; empty if it can.
        hint: what to do about it; may be empty.
        about: what it is; None if it cannot be read.
    """

    name: str
    state: State
    reason: str = ""
    hint: str = ""
    about: About | None = None

    def __str__(self) -> str:
        if self.about is None:
            return f"{self.name} {self.state} ({self.reason})"
        return f"{self.name}: {self.about.covers or 'temperatures and clocks'}"


def open_sources(root: Path = Path("/")) -> tuple[list[Source], list[Found]]:
    """Open what can be read.

    Args:
        root: where /sys is looked for.

    Returns:
        the opened sources, and what became of each one, in order of preference.
    """
    opened: list[Source] = []
    found: list[Found] = []
    for group in GROUPS:
        taken = ""
        for name, open_ in group.items():
            if taken:
                found.append(Found(name, "unneeded", f"{taken} reads the same"))
                continue
            try:
                source = open_(root)
            except SensorError as error:
                found.append(Found(name, error.state, error.what, error.hint))
                continue
            opened.append(source)
            found.append(Found(name, "ok", about=source.about))
            taken = name
    return opened, found
