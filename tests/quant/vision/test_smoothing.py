"""Smoothing: what it may do to a layer, and when it is left alone."""

import pytest
import torch

from edgevlm.quant.vision.plan import LARGEST, quantize_weight, rounded_values, rounded_weight
from edgevlm.quant.vision.smoothing import smoothing_factors

GENERATOR = torch.Generator().manual_seed(0)
WEIGHT = torch.rand(48, 32, generator=GENERATOR) - 0.5
INPUTS = torch.rand(200, 32, generator=GENERATOR) - 0.5


def output_error(inputs: torch.Tensor, factors: torch.Tensor) -> float:
    smooth = inputs / factors
    rounded = rounded_values(smooth, float(smooth.abs().max()) / LARGEST) @ rounded_weight(WEIGHT * factors).T
    return float((rounded - inputs @ WEIGHT.T).square().sum())


def test_a_loud_channel_is_made_quiet() -> None:
    loud = INPUTS.clone()
    loud[:, 5] *= 100
    factors = smoothing_factors(loud, [WEIGHT], loud.abs().amax(dim=0))
    assert factors is not None
    assert int(factors.argmax()) == 5
    assert float(factors.log().mean()) == pytest.approx(0, abs=1e-5)
    assert output_error(loud, factors) < 0.1 * output_error(loud, torch.ones(32))


def test_even_channels_stay_as_they_are() -> None:
    assert smoothing_factors(INPUTS, [WEIGHT], INPUTS.abs().amax(dim=0)) is None


def test_a_channel_that_is_always_zero_keeps_its_weights() -> None:
    loud = INPUTS.clone()
    loud[:, 5] *= 100
    loud[:, 7] = 0
    factors = smoothing_factors(loud, [WEIGHT], loud.abs().amax(dim=0))
    assert factors is not None
    assert float(factors[7]) == 1
    assert smoothing_factors(torch.zeros_like(INPUTS), [WEIGHT], torch.zeros(32)) is None


def test_codes_are_symmetric_and_at_most_half_a_step_off() -> None:
    weight = torch.cat((WEIGHT, torch.zeros(1, 32)))
    codes, scales = quantize_weight(weight)
    assert codes.dtype == torch.int8
    assert codes[:-1].abs().amax(dim=1).eq(LARGEST).all()
    assert bool(((codes * scales[:, None] - weight).abs() <= scales[:, None] * 0.5001).all())
    assert float(scales[-1]) == 1
    with pytest.raises(ValueError, match="not finite"):
        quantize_weight(torch.tensor([[1.0, float("nan")]]))
