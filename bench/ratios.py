"""How far two measurements lie apart, with an interval made of the interval of each (MOVER, Zou and Donner 2008).

In: samples, or the shares of right answers, of two independent runs. Out: the change with its 95% interval. Medians
come with their order-statistic intervals, so that nothing is assumed about how times are distributed; for two shares
with Wilson intervals the method is Newcombe's (1998, method 10).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from edgevlm.bench.pairs import Interval, Proportion
from edgevlm.bench.stats import Percentile, percentile


def difference(of: Interval, less: Interval) -> Interval:
    """`of` less `less`, both independent: the distances to their ends add up like the sides of a right angle."""
    value = of.value - less.value
    return Interval(
        value=value,
        low=value - math.hypot(of.value - of.low, less.high - less.value),
        high=value + math.hypot(of.high - of.value, less.value - less.low),
    )


def median_ratio(new: Sequence[float], old: Sequence[float]) -> Interval | None:
    """Median of `new` over that of `old`; None with fewer than 6 samples in either, or where one is not above zero."""
    return point_ratio(percentile(new, 50), percentile(old, 50))


def point_ratio(new: Percentile | None, old: Percentile | None) -> Interval | None:
    """`new` over `old` with the interval of the difference of their logarithms, taken back; None where one is not."""
    logs = [
        Interval(value=math.log(point.value), low=math.log(point.low), high=math.log(point.high))
        for point in (new, old)
        if point is not None and point.low > 0
    ]
    if len(logs) < 2:
        return None
    apart = difference(*logs)
    return Interval(value=math.exp(apart.value), low=math.exp(apart.low), high=math.exp(apart.high))


def share_difference(new: Proportion, old: Proportion) -> Interval | None:
    """Difference of two shares of independent items; None where one has no items."""
    shares = [
        Interval(value=share.value, low=share.low, high=share.high)
        for share in (new, old)
        if share.value is not None and share.low is not None and share.high is not None
    ]
    return difference(*shares) if len(shares) == 2 else None
