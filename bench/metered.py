"""What a report says of power, heat and clocks: which sensors there were, and what they showed of a row.

Energy is joules, power watts, temperatures degrees Celsius, clocks MHz. What was not measured is null or missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from edgevlm.targets.sensors.linux import NAME as LINUX


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Sensor(_Part):
    """One source of power, heat or clocks, and whether it could be read."""

    name: str
    state: Literal["ok", "absent", "forbidden", "broken", "unneeded"]
    detail: str = Field(description="what it covers, or why it is not read")
    power: bool = Field(description="whether it measures power or energy here")


class Joules(_Part):
    """An energy as measured, and without what the idle machine uses in the same time."""

    gross: float
    net: float | None = Field(description="less idle power times time; null where idle power was not measured")


class Meter(_Part):
    """Energy of the steady answers by one source, the time between answers left out."""

    source: str
    rails: list[str] = Field(description="added up")
    covers: str = Field(description="what these rails feed")
    method: Literal["counter", "trapezoid"] = Field(description="difference of an energy counter, or integral of power")
    rate_hz: float = Field(description="steps of the counter, or readings of power, in a second")
    answers: int = Field(description="steady answers that were measured from beginning to end")
    seconds: float = Field(description="length of these answers together")
    mean_w: float = Field(description="over these answers")
    idle_w: float | None = Field(description="before the first bundle was loaded; null where not measured")
    per_answer: Joules
    per_image: Joules | None = Field(
        description="image bytes to first text; null where that is shorter than two readings or steps"
    )
    per_token: Joules | None = Field(description="each token after the first; null likewise")


class Energy(_Part):
    """Energy of one row, the source that covers most first."""

    meters: list[Meter]
    reason: str = Field(description="why there is none; empty if there is")


class Clock(_Part):
    """One clock during the steady answers."""

    source: str
    name: str
    median_mhz: float
    min_mhz: float


class Throttle(_Part):
    """Why something was slowed down, and in what share of the readings during the steady answers."""

    source: str
    reason: str
    share: float


class Series(_Part):
    """Means of successive stretches of readings, from the first answer to the last steady one."""

    source: str
    name: str
    unit: Literal["W", "°C", "MHz"]
    at_s: list[float] = Field(description="seconds since the worker's start, as `at_s` of a sample")
    values: list[float]


class Heat(_Part):
    """Temperatures and clocks of one row."""

    zone: str = Field(description="the hottest one; empty where no temperature was read")
    start_c: float | None = Field(description="of that zone, at the first answer")
    max_c: float | None = Field(description="of that zone, up to the last steady answer")
    clocks: list[Clock]
    throttled: list[Throttle]
    series: list[Series]


def no_power(sensors: Sequence[Sensor]) -> str:
    """Why a machine has no source of power: those that fail by name, those that are not there by their names alone."""
    sources = [each for each in sensors if each.name != LINUX]
    told = [f"{each.name}: {each.detail}" for each in sources if each.state in ("forbidden", "broken")]
    absent = [each.name for each in sources if each.state == "absent"]
    return "; ".join([*told, *([f"no {', '.join(absent)} here"] if absent else [])])
