"""Statistics of right and wrong answers: one system's accuracy, and two systems on the same items.

In: booleans per item, and the image each item belongs to. Out: Wilson intervals, the paired difference with a
bootstrap interval that resamples whole images (questions about one image are not independent), McNemar's test, and the
smallest drop that n items could have shown. numpy only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from edgevlm.bench.stats import binomial_cdf, binomial_pmf

RESAMPLES = 10_000
#: Below this many discordant items McNemar's test is exact; from it on mid-p, which is less conservative.
EXACT_BELOW = 25
_TAIL = 0.025
_Z95 = NormalDist().inv_cdf(1 - _TAIL)
_CHUNK_CELLS = 4_000_000


class Proportion(BaseModel):
    """A share of `n` items with its 95% Wilson score interval; with partial credit a mean with a bootstrap interval."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    n: int = Field(ge=0)
    correct: int = Field(ge=0, description="with partial credit those of one half at least")
    value: float | None = Field(description="correct / n, with partial credit the mean credit; null where n is 0")
    low: float | None
    high: float | None


class Interval(BaseModel):
    """A value and its 95% confidence interval."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    value: float
    low: float
    high: float


def wilson(correct: int, n: int) -> Proportion:
    """The 95% Wilson score interval of `correct` among `n` (Wilson 1927)."""
    if n == 0:
        return Proportion(n=0, correct=0, value=None, low=None, high=None)
    share = correct / n
    z2 = _Z95 * _Z95
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return Proportion(n=n, correct=correct, value=share, low=max(0.0, centre - half), high=min(1.0, centre + half))


def mcnemar_exact(lost: int, gained: int) -> float:
    """Two-sided exact McNemar p-value of `lost` and `gained` discordant items (binomial with p = 1/2)."""
    n = lost + gained
    return min(1.0, 2 * binomial_cdf(min(lost, gained), n, 0.5)) if n else 1.0


def mcnemar_midp(lost: int, gained: int) -> float:
    """Two-sided mid-p McNemar p-value (Fagerland et al. 2013): the exact one less the outcome's own probability."""
    n = lost + gained
    if lost == gained:
        return 1.0 - binomial_pmf(lost, n, 0.5) if n else 1.0
    return mcnemar_exact(lost, gained) - binomial_pmf(min(lost, gained), n, 0.5)


def delta_interval(
    candidate: Sequence[float],
    baseline: Sequence[float],
    clusters: Sequence[str],
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Interval:
    """Accuracy of `candidate` less that of `baseline` on the same items, with a 95% bootstrap interval.

    What never happened cannot be drawn again: without a single lost (gained) item that end of the interval moves out
    by the exact binomial bound for none among n, so that a few items never prove that nothing was lost.

    Args:
        candidate: right or wrong, or the credit, 0 to 1, per item.
        baseline: the same items in the same order.
        clusters: the image of each item; whole images are resampled, with replacement.
        seed: of the resampling.
        resamples: how often.

    Raises:
        ValueError: the three differ in length, or are empty.
    """
    if not (len(candidate) == len(baseline) == len(clusters)) or not clusters:
        raise ValueError(f"paired answers differ in length: {len(candidate)}, {len(baseline)}, {len(clusters)}")
    difference = np.asarray(candidate, dtype=np.float64) - np.asarray(baseline, dtype=np.float64)
    found = mean_interval(difference.tolist(), clusters, seed, resamples)
    unseen = 1 - _TAIL ** (1 / difference.size)
    return Interval(
        value=found.value,
        low=found.low - (0 if (difference < 0).any() else unseen),
        high=found.high + (0 if (difference > 0).any() else unseen),
    )


def mean_interval(
    values: Sequence[float], clusters: Sequence[str], seed: int = 0, resamples: int = RESAMPLES
) -> Interval:
    """The mean of `values` with a 95% bootstrap interval; whole clusters are drawn, with replacement.

    The percentile interval, expanded as Student's t is wider than the normal distribution (Hesterberg 2015): the plain
    one is too short where clusters are few.
    """
    _, index = np.unique(np.asarray(clusters), return_inverse=True)
    groups = int(index.max()) + 1
    sums = np.bincount(index, weights=np.asarray(values, dtype=np.float64), minlength=groups)
    sizes = np.bincount(index, minlength=groups).astype(np.float64)
    rng = np.random.default_rng(seed)
    means: list[np.ndarray] = []
    left = resamples
    while left:
        rows = min(left, max(1, _CHUNK_CELLS // groups))
        draws = rng.integers(0, groups, (rows, groups))
        means.append(sums[draws].sum(axis=1) / sizes[draws].sum(axis=1))
        left -= rows
    tail = 100 * _expanded_tail(groups)
    low, high = (float(value) for value in np.percentile(np.concatenate(means), [tail, 100 - tail]))
    return Interval(value=float(sums.sum() / sizes.sum()), low=low, high=high)


def _expanded_tail(groups: int) -> float:
    """The share of resamples beyond either end: less than 2.5%, by Student's t for so many groups.

    The quantile of t is Fisher's expansion in 1 / degrees of freedom, good to 1% from five on.
    """
    if groups < 2:
        return _TAIL
    free = groups - 1
    z = _Z95
    t = z + (z**3 + z) / (4 * free) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * free**2)
    return NormalDist().cdf(-t * math.sqrt(groups / free))


def items_needed(drop: float, discordant: float) -> int:
    """Items that show a drop with 80% power at 5% two-sided (Connor 1987).

    Args:
        drop: difference of the two accuracies, 0 < drop <= discordant.
        discordant: share of items that only one of the two answers right.
    """
    z_alpha, z_power = NormalDist().inv_cdf(0.975), NormalDist().inv_cdf(0.8)
    root = z_alpha * math.sqrt(discordant) + z_power * math.sqrt(discordant - drop * drop)
    return math.ceil((root / drop) ** 2)


def smallest_detectable_drop(n: int, discordant: float) -> float | None:
    """The smallest drop that `n` items show with 80% power, or None where not even `discordant` itself would show."""
    if discordant <= 0 or items_needed(discordant, discordant) > n:
        return None
    low, high = discordant * 1e-3, discordant
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if items_needed(middle, discordant) <= n else (middle, high)
    return high
