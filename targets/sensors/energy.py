"""Energy of what was sampled: trapezoids over instants of power, or differences of a counter, within given times.

Both become one curve, energy since the first reading, which is linear between two readings. Where nothing was read
nothing is made up: times outside of the curve have no energy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgevlm.targets.sensors.log import Track

Method: TypeAlias = Literal["counter", "trapezoid"]
#: From when to when, in seconds of the monotonic clock.
Span: TypeAlias = tuple[float, float]


@dataclass(frozen=True)
class Curve:
    """Energy in joules since the first reading.

    Attributes:
        at_s: instants, float64 `[N]`, N >= 2, not decreasing.
        joules: at these, float64 `[N]`.
        method: how it was found.
        rate_hz: new values a second: readings of power, or steps of a counter.
    """

    at_s: NDArray[np.float64]
    joules: NDArray[np.float64]
    method: Method
    rate_hz: float

    def holds(self, span: Span) -> bool:
        """Whether all of `span` was measured."""
        return bool(self.at_s[0] <= span[0] <= span[1] <= self.at_s[-1])

    def within(self, spans: Sequence[Span]) -> float:
        """Joules in all of `spans`, each of which it holds."""
        ends = np.interp([end for _, end in spans], self.at_s, self.joules)
        starts = np.interp([start for start, _ in spans], self.at_s, self.joules)
        return float(np.sum(ends - starts))

    @property
    def mean_w(self) -> float:
        """Mean power from the first reading to the last, in watts."""
        return float((self.joules[-1] - self.joules[0]) / (self.at_s[-1] - self.at_s[0]))


def curve(track: Track, rails: Sequence[str]) -> Curve | None:
    """The energy of these rails together; by the counter where all of them have one.

    None where there are fewer than two readings of all rails, or where all of them read zero: a rail that feeds what
    is being measured does not, so that the sensor does not work.
    """
    for method in ("counter", "trapezoid"):
        values = [
            (at, sum(rail[name] for name in rails))
            for at, reading in zip(track.at_s, track.readings, strict=True)
            for rail in [reading.joules if method == "counter" else reading.watts]
            if all(name in rail for name in rails)
        ]
        if len(values) < 2 or values[-1][0] <= values[0][0]:
            continue
        at, seen = (np.array(column, np.float64) for column in zip(*values, strict=True))
        found = _counted(at, seen) if method == "counter" else _integrated(at, seen)
        if found.joules[-1] > found.joules[0]:
            return found
    return None


def _integrated(at_s: NDArray[np.float64], watts: NDArray[np.float64]) -> Curve:
    """From power, by the trapezoidal rule."""
    steps = np.diff(at_s) * (watts[1:] + watts[:-1]) / 2
    rate = (len(at_s) - 1) / (at_s[-1] - at_s[0])
    return Curve(at_s, np.concatenate(([0.0], np.cumsum(steps))), "trapezoid", float(rate))


def _counted(at_s: NDArray[np.float64], joules: NDArray[np.float64]) -> Curve:
    """From a counter. Between two of its steps it stands still, so its rate is that of the steps."""
    steps = np.count_nonzero(np.diff(joules))
    return Curve(at_s, joules - joules[0], "counter", float(steps / (at_s[-1] - at_s[0])))
