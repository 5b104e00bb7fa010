"""Percentiles claim no more than the sample supports, and agree with scipy's order statistics."""

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from edgevlm.bench.stats import PERCENTILES, binomial_cdf, percentile, samples_needed, summarise


def test_sizes_from_which_a_percentile_has_an_upper_bound() -> None:
    assert [samples_needed(q) for q in PERCENTILES] == [6, 36, 72, 368]


@pytest.mark.parametrize("q", PERCENTILES)
def test_percentile_is_withheld_one_sample_below(q: int) -> None:
    enough = [float(value) for value in range(samples_needed(q))]
    assert percentile(enough, q) is not None
    assert percentile(enough[:-1], q) is None


@pytest.mark.parametrize(("n", "q"), [(6, 50), (41, 50), (36, 90), (250, 95), (368, 99), (1000, 99)])
def test_intervals_are_those_of_scipy(n: int, q: int) -> None:
    values = np.random.default_rng(n).lognormal(size=n)
    ours = percentile(values.tolist(), q)
    theirs = scipy_stats.quantile_test(values, p=q / 100).confidence_interval(0.95)
    assert ours is not None
    assert (ours.low, ours.high) == (theirs.low, theirs.high)
    assert ours.value == np.percentile(values, q)


@pytest.mark.parametrize(
    ("k", "n", "p"), [(0, 5, 0.5), (3, 15, 0.5), (90, 100, 0.9), (360, 368, 0.99), (4000, 5000, 0.8)]
)
def test_binomial_tail_is_that_of_scipy(k: int, n: int, p: float) -> None:
    assert binomial_cdf(k, n, p) == pytest.approx(scipy_stats.binom.cdf(k, n, p), rel=1e-9)


def test_interval_covers_the_true_median_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    found = [percentile(rng.exponential(size=20).tolist(), 50) for _ in range(1000)]
    covered = sum(p is not None and p.low <= math.log(2) <= p.high for p in found)
    assert covered >= 935


def test_summary_of_few_samples_has_no_invented_figures() -> None:
    one = summarise([5.0])
    assert one is not None
    assert (one.n, one.median, one.stdev, one.cv, one.p50) == (1, 5.0, None, None, None)
    assert summarise([]) is None


def test_summary_agrees_with_numpy() -> None:
    values = np.random.default_rng(2).normal(10, 1, 100)
    summary = summarise(values.tolist())
    assert summary is not None
    assert summary.mean == pytest.approx(values.mean())
    assert summary.stdev == pytest.approx(values.std(ddof=1))
    assert summary.cv == pytest.approx(values.std(ddof=1) / values.mean())
