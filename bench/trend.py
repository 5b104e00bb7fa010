"""Whether successive measurements rise or fall: the trend's size and how likely chance alone makes one as clear.

The size is Sen's slope, the median over all pairs, times the length; the p-value is that of the Mann-Kendall test
(normal approximation with correction for ties, two-sided), as in Gilbert, Statistical Methods for Environmental
Pollution Monitoring, chapter 16. Neither is moved by a few outliers, nor by one step at the beginning.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

#: Fewer values cannot show a trend at 1%.
LEAST = 6
#: Longer series are taken as so many means of neighbours, for there are n²/2 pairs.
_MOST = 200


@dataclass(frozen=True)
class Trend:
    """How much later values exceed earlier ones, first to last, in their own unit, and the p-value."""

    change: float
    p: float


def trend(values: Sequence[float]) -> Trend | None:
    """The trend of equally spaced values; None below `LEAST` of them."""
    if len(values) < LEAST:
        return None
    pieces = np.array_split(np.asarray(values, np.float64), min(_MOST, len(values)))
    series = np.array([piece.mean() for piece in pieces])
    earlier, later = np.triu_indices(len(series), 1)
    steps = series[later] - series[earlier]
    slope = float(np.median(steps / (later - earlier)))
    return Trend(slope * (len(series) - 1), _mann_kendall(series, float(np.sign(steps).sum())))


def _mann_kendall(series: np.ndarray[tuple[int], np.dtype[np.float64]], score: float) -> float:
    n = len(series)
    ties = np.unique(series, return_counts=True)[1]
    variance = (n * (n - 1) * (2 * n + 5) - float((ties * (ties - 1) * (2 * ties + 5)).sum())) / 18
    if variance <= 0:
        return 1.0
    distance = max(0.0, abs(score) - 1) / math.sqrt(variance)
    return math.erfc(distance / math.sqrt(2))
