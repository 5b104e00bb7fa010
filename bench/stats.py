"""Statistics of repeated timings: percentiles with distribution-free confidence intervals, and no more than n supports.

In: raw samples of one quantity. Out: mean, spread and those percentiles whose 95% interval is finite on both sides; the
others are None, for a p99 of ten runs is a guess. Needs numpy only; the binomial tail is summed here because scipy is
not on the device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

#: The percentiles of a report, and the smallest sample with a finite 95% upper bound: q^n <= 0.025.
PERCENTILES = (50, 90, 95, 99)
_TAIL = 0.025


class Percentile(BaseModel):
    """One percentile and its 95% confidence interval by order statistics."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    value: float
    low: float
    high: float


class Summary(BaseModel):
    """What `n` samples of one quantity say. Units are those of the samples."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    n: int = Field(ge=1, description="number of samples")
    mean: float
    stdev: float | None = Field(description="sample standard deviation (n - 1); null for one sample")
    cv: float | None = Field(description="coefficient of variation: stdev / mean; null where undefined")
    min: float
    max: float
    p50: Percentile | None = Field(description="null below 6 samples")
    p90: Percentile | None = Field(description="null below 36 samples")
    p95: Percentile | None = Field(description="null below 72 samples")
    p99: Percentile | None = Field(description="null below 368 samples")
    median: float = Field(description="middle sample, given for any n, without interval")


def samples_needed(percentile: int) -> int:
    """Smallest n whose 95% interval for that percentile has a finite upper end: 6, 36, 72, 368."""
    return math.ceil(math.log(_TAIL) / math.log(percentile / 100))


def binomial_cdf(k: int, n: int, p: float) -> float:
    """P(X <= k) of a binomial with n trials of probability p (0 < p < 1)."""
    if k < 0:
        return 0.0
    if k >= n:
        return 1.0
    return min(1.0, math.fsum(binomial_pmf(i, n, p) for i in range(k + 1)))


def binomial_pmf(k: int, n: int, p: float) -> float:
    """P(X = k) of a binomial with n trials of probability p (0 < p < 1), through logarithms so that no n overflows."""
    choose = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    return math.exp(choose + k * math.log(p) + (n - k) * math.log1p(-p))


def percentile(samples: Sequence[float], q: int) -> Percentile | None:
    """Percentile `q` (1 to 99) by linear interpolation with its 95% interval, or None where n is too small.

    The interval [X(l), X(u)] of order statistics covers with at least 95% whatever the distribution: l is the largest
    rank with P(B < l) <= 2.5%, u the smallest with P(B >= u) <= 2.5%, B ~ Binomial(n, q/100)
    (Conover, Practical Nonparametric Statistics, section 3.2).
    """
    ends = _ends(len(samples), q)
    if ends is None:
        return None
    ordered = np.sort(np.asarray(samples, dtype=np.float64))
    return Percentile(value=float(np.percentile(ordered, q)), low=float(ordered[ends[0]]), high=float(ordered[ends[1]]))


@lru_cache(maxsize=1024)
def _ends(n: int, q: int) -> tuple[int, int] | None:
    """Which of `n` ordered samples are the ends of the interval, counted from 0; None where n is too small."""
    if n < samples_needed(q):
        return None
    cumulative = np.cumsum([binomial_pmf(k, n, q / 100) for k in range(n + 1)])
    below = np.flatnonzero(cumulative <= _TAIL)
    above = np.flatnonzero(cumulative >= 1 - _TAIL)
    if not below.size or int(above[0]) >= n:
        return None
    return int(below[-1]), int(above[0])


def summarise(samples: Sequence[float]) -> Summary | None:
    """All figures of one quantity, or None where there is no sample."""
    if not samples:
        return None
    values = np.asarray(samples, dtype=np.float64)
    mean = float(values.mean())
    stdev = float(values.std(ddof=1)) if values.size > 1 else None
    points = {f"p{q}": percentile(samples, q) for q in PERCENTILES}
    return Summary(
        n=int(values.size),
        mean=mean,
        stdev=stdev,
        cv=stdev / mean if stdev is not None and mean > 0 else None,
        min=float(values.min()),
        max=float(values.max()),
        median=float(np.median(values)),
        **points,
    )
