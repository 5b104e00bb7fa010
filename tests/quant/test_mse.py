"""Ranges shrunk for the squared error: never more of it than after rounding, and less where there are outliers."""

import numpy as np
import pytest
import torch
from linear_inputs import normal

from edgevlm.quant import mse, rtn
from edgevlm.quant.tensor import QuantizedTensor, QuantScheme


def squares(weight: torch.Tensor, rounded: QuantizedTensor) -> float:
    return float(((rounded.dequantize() - weight.numpy()) ** 2).sum())


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [3, 4, 8])
def test_the_error_is_never_more_and_with_outliers_less(bits: int, symmetric: bool) -> None:
    weight = normal(32, 100)
    scheme = QuantScheme(bits, 32, symmetric)  # type: ignore[arg-type]
    for row in range(32):
        one = weight[row : row + 1]
        assert squares(one, mse.quantize(one, scheme)) <= squares(one, rtn.quantize(one, scheme)) * (1 + 1e-6)
    weight[:, ::50] *= 1.7
    gain = {3: 0.9, 4: 0.98, 8: 1.001}[bits]
    assert squares(weight, mse.quantize(weight, scheme)) < gain * squares(weight, rtn.quantize(weight, scheme))


def test_not_a_number_is_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        mse.quantize(torch.tensor([[1.0, np.nan]]), QuantScheme(4, 32))
