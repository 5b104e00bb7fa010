"""Axes of pictures: from a value to a place in pixels, and round values to write beside them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from edgevlm.bench.pairs import Proportion
from edgevlm.bench.render.svg import ticks

#: An axis whose values differ by a larger factor is logarithmic.
_LINEAR_UP_TO = 8


@dataclass(frozen=True)
class Axis:
    """Values from `low` to `high` stand from pixel `start` to pixel `end`."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def at(self, value: float) -> float:
        """Where a value stands."""
        low, high, here = self.low, self.high, value
        if self.logarithmic:
            low, high, here = math.log(low), math.log(high), math.log(here)
        return self.start + (here - low) / (high - low) * (self.end - self.start)

    def ticks(self, count: int) -> list[float]:
        """Round values on it; about `count` where it is linear."""
        if not self.logarithmic:
            return ticks(self.low, self.high, count)
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        found = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
        return [value for value in found if self.low <= value <= self.high]


def share_axis(shares: Sequence[Proportion], start: float, end: float) -> Axis:
    """An axis that holds the intervals of all shares, with some room."""
    lows = [share.low for share in shares if share.low is not None]
    highs = [share.high for share in shares if share.high is not None]
    if not lows or not highs:
        return Axis(0.0, 1.0, start, end)
    pad = max(0.01, 0.12 * (max(highs) - min(lows)))
    return Axis(max(0.0, min(lows) - pad), min(1.0, max(highs) + pad), start, end)


def cost_axis(values: Sequence[float], start: float, end: float) -> Axis:
    """An axis of times or counts: from zero, or logarithmic where they differ by much."""
    if not values:
        return Axis(0.0, 1.0, start, end)
    low, high = min(values), max(values)
    if high > _LINEAR_UP_TO * low:
        return Axis(low / 1.6, high * 1.6, start, end, logarithmic=True)
    return Axis(0.0, high * 1.18, start, end)
