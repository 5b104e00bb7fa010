"""HQQ: less of the norm that it minimises, on weights with outliers and without."""

import numpy as np
import pytest
import torch
from linear_inputs import normal

from edgevlm.quant import rtn
from edgevlm.quant.hqq import NORM, quantize
from edgevlm.quant.tensor import QuantizedTensor, QuantScheme


def heavy_tailed(rows: int, columns: int) -> torch.Tensor:
    return normal(rows, columns) * (1 + 5 * (normal(rows, columns, 2) > 2))


def norm_of(weight: torch.Tensor, rounded: QuantizedTensor) -> float:
    return float((np.abs(rounded.dequantize() - weight.numpy()) ** NORM).sum())


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("columns", "group"), [(128, 64), (100, 32)])
def test_the_norm_is_less_than_after_rounding(symmetric: bool, columns: int, group: int) -> None:
    weight, scheme = heavy_tailed(32, columns), QuantScheme(3, group, symmetric, "hqq")
    assert norm_of(weight, quantize(weight, scheme)) < 0.98 * norm_of(weight, rtn.quantize(weight, scheme))


def test_size_of_the_weights_does_not_matter() -> None:
    weight, scheme = heavy_tailed(16, 64), QuantScheme(4, 32, algorithm="hqq")
    small, large = quantize(weight * 2**-6, scheme), quantize(weight * 2**6, scheme)
    assert np.array_equal(small.codes, large.codes)


def test_zeros_stay_zero() -> None:
    weight = heavy_tailed(4, 64)
    weight[2] = 0
    restored = quantize(weight, QuantScheme(4, 32, algorithm="hqq")).dequantize()
    assert not restored[2].any()
    assert np.isfinite(restored).all()
