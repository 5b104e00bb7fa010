"""Changes of medians and of shares have the intervals that the literature gives, and these cover the truth."""

import numpy as np
import pytest
from scipy.stats import bootstrap

from edgevlm.bench.pairs import Interval, wilson
from edgevlm.bench.ratios import difference, median_ratio, share_difference


def test_difference_of_shares_is_newcombes() -> None:
    """Newcombe (1998), table II, (a): 56 of 70 against 48 of 80, method 10."""
    found = share_difference(wilson(56, 70), wilson(48, 80))
    assert found is not None
    assert (found.value, found.low, found.high) == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)


def test_share_of_nothing_has_no_difference() -> None:
    assert share_difference(wilson(0, 0), wilson(1, 2)) is None


def test_distances_add_like_the_sides_of_a_right_angle() -> None:
    found = difference(Interval(value=10, low=7, high=13), Interval(value=1, low=-3, high=5))
    assert (found.value, found.low, found.high) == (9, 4, 14)


def test_interval_of_a_ratio_of_medians_is_near_the_bootstraps() -> None:
    rng = np.random.default_rng(0)
    new, old = rng.lognormal(0.1, 0.05, 120), rng.lognormal(0.0, 0.05, 120)
    found = median_ratio(list(new), list(old))
    assert found is not None
    reference = bootstrap(
        (new, old), lambda a, b, axis: np.median(a, axis) / np.median(b, axis), method="percentile", rng=rng
    ).confidence_interval
    assert found.value == pytest.approx(np.median(new) / np.median(old))
    assert found.low == pytest.approx(reference.low, abs=0.006)
    assert found.high == pytest.approx(reference.high, abs=0.006)


def test_interval_of_a_ratio_covers_the_truth_and_not_much_more() -> None:
    rng = np.random.default_rng(1)
    covered, runs = 0, 400
    for _ in range(runs):
        found = median_ratio(list(1.2 * rng.lognormal(0, 0.2, 25)), list(rng.lognormal(0, 0.2, 40)))
        assert found is not None
        covered += found.low <= 1.2 <= found.high
    assert 0.93 <= covered / runs <= 0.995


@pytest.mark.parametrize(("new", "old"), [([1.0] * 5, [1.0] * 9), ([1.0] * 9, [0.0] * 9)])
def test_too_few_samples_and_zeros_have_no_ratio(new: list[float], old: list[float]) -> None:
    assert median_ratio(new, old) is None
