"""A trend is told from noise, and from a step at the beginning; the test is the one that scipy knows."""

import math

import numpy as np
import pytest
from scipy import stats

from edgevlm.bench.trend import LEAST, trend


def test_size_is_that_of_scipys_slope_and_p_that_of_kendalls_tau() -> None:
    values = np.random.default_rng(0).normal(100, 5, 40) + np.linspace(0, 12, 40)
    found = trend(values.tolist())
    assert found is not None
    assert found.change == pytest.approx(39 * stats.theilslopes(values).slope)
    score = stats.kendalltau(np.arange(40), values).statistic * 40 * 39 / 2
    deviation = math.sqrt(40 * 39 * 85 / 18)
    assert found.p == pytest.approx(2 * stats.norm.sf((score - 1) / deviation))


def test_noise_shows_a_trend_as_often_as_the_p_value_says() -> None:
    rng = np.random.default_rng(1)
    found = [trend(rng.normal(size=20).tolist()) for _ in range(1000)]
    assert 0.02 < np.mean([each is not None and each.p < 0.05 for each in found]) < 0.07


@pytest.mark.parametrize("values", [[5.0] * 10, [9.0, *[5.0] * 20], [1.0] * (LEAST - 1)])
def test_constants_one_step_and_few_values_have_none(values: list[float]) -> None:
    found = trend(values)
    assert found is None or (found.change, found.p > 0.05) == (0, True)


def test_long_series_are_taken_in_pieces() -> None:
    found = trend(np.linspace(0, 100, 5000).tolist())
    assert found is not None
    assert found.change == pytest.approx(100, rel=0.01)
    assert found.p < 1e-6
