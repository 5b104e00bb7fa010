"""What a sensor is: one look at it gives watts per rail, temperatures, clocks and reasons for throttling.

A source that is absent or may not be read is told so, with the reason, when it is opened; one that goes away later
raises the same error when it is read. Whatever a source does not measure is missing from its readings: never zero.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias

from edgevlm.errors import EdgeVLMError

#: `unneeded`: another source reads the same chips.
State: TypeAlias = Literal["ok", "absent", "forbidden", "broken", "unneeded"]
Trouble: TypeAlias = Literal["absent", "forbidden", "broken"]


class SensorError(EdgeVLMError):
    """A sensor that cannot be read.

    Attributes:
        state: `absent` (this machine has none), `forbidden` (it asks for rights), `broken` (it fails).
    """

    def __init__(self, what: str, where: str, state: Trouble, hint: str = "") -> None:
        super().__init__(what, where, hint)
        self.state = state


@dataclass(frozen=True)
class Reading:
    """One look at a source.

    Attributes:
        watts: power of each rail, where the source measures power.
        joules: energy that each rail has used since some instant, where the source counts it; never decreases.
        celsius: temperatures by the name of their zone.
        megahertz: clocks by the name of what they drive.
        throttled: why something is slowed down at this moment; empty if nothing is.
    """

    watts: dict[str, float] = field(default_factory=dict)
    joules: dict[str, float] = field(default_factory=dict)
    celsius: dict[str, float] = field(default_factory=dict)
    megahertz: dict[str, float] = field(default_factory=dict)
    throttled: tuple[str, ...] = ()


@dataclass(frozen=True)
class About:
    """What a source is.

    Attributes:
        name: e.g. `rapl`.
        covers: what its total is the power of, and what is left out; empty where it measures no power.
        rails: every rail whose power or energy it reads.
        total: the rails that add up to what it covers; empty where no rule says which.
        interval_s: between two looks; 0 where `sample` itself waits for the next one.
    """

    name: str
    covers: str
    rails: tuple[str, ...]
    total: tuple[str, ...]
    interval_s: float


class Source(Protocol):
    """An opened sensor."""

    about: About

    def sample(self) -> Reading:
        """Look once.

        Raises:
            SensorError: it has gone, or refuses.
        """
        ...

    def close(self) -> None:
        """Give back what it holds."""
        ...
