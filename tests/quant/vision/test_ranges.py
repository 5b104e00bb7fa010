"""Ranges of activations against numpy, and against onnxruntime's own calibrator."""

import numpy as np
import pytest
import torch
from onnxruntime.quantization.calibrate import HistogramCollector

from edgevlm.quant.vision.ranges import BINS, MagnitudeHistogram


def counted(values: torch.Tensor) -> MagnitudeHistogram:
    histogram = MagnitudeHistogram(float(values.abs().max()))
    for part in values.chunk(3):
        histogram.add(part)
    return histogram


@pytest.mark.parametrize("percent", [99.9, 99.0, 50.0])
def test_percentile_equals_the_one_sorted_by_hand(percent: float) -> None:
    values = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    by_hand = values.abs().sort().values[round(len(values) * percent / 100) - 1]
    histogram = counted(values)
    assert 0 <= histogram.percentile(percent) - by_hand <= histogram.largest / BINS
    assert histogram.percentile(100) == histogram.largest


def test_percentile_is_onnxruntimes_to_a_bin() -> None:
    values = torch.randn(50_000, generator=torch.Generator().manual_seed(1)) ** 3
    theirs = HistogramCollector("percentile", True, BINS, 128, 99.9, "same")
    theirs.collect({"x": values.numpy()})
    (_, expected) = theirs.compute_percentile()["x"][:2]
    histogram = counted(values)
    assert abs(histogram.percentile(99.9) - float(expected)) <= 1.01 * histogram.largest / BINS


def test_squared_error_is_that_of_rounding() -> None:
    values = torch.rand(200_000, generator=torch.Generator().manual_seed(2)) * 8
    histogram = counted(values)
    for threshold in (2.0, 6.0, 7.9):
        rounded = (values / (threshold / 127)).round().clamp(max=127) * (threshold / 127)
        measured = float((rounded - values).double().square().sum())
        assert histogram.squared_error(threshold) == pytest.approx(measured, rel=0.02)


def test_outliers_are_clipped_only_where_that_costs_less() -> None:
    even = torch.rand(100_000, generator=torch.Generator().manual_seed(3))
    assert counted(even).threshold() > 0.99 * counted(even).largest
    lone = torch.cat((*[even] * 10, torch.full((2,), 30.0)))
    assert counted(lone).threshold() < 2
    # One in a hundred of that size is worth its codes.
    assert counted(torch.cat((even, torch.full((1000,), 30.0)))).threshold() == 30


def test_counts_are_exact_beyond_what_float32_counts() -> None:
    histogram = MagnitudeHistogram(1.0)
    zeros = torch.zeros((1 << 24) + 3)
    histogram.add(zeros)
    assert int(histogram.counts[0]) == len(zeros)
    assert np.isclose(histogram.percentile(99.9), 1 / BINS)
