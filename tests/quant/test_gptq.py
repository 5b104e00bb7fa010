"""GPTQ against its formula, written out in numpy for matrices small enough to invert what is left at every step."""

import numpy as np
import pytest
import torch
from linear_inputs import correlated, moments_of, normal, output_error
from numpy.typing import NDArray

from edgevlm.quant import rtn
from edgevlm.quant.gptq import DAMPING, gptq
from edgevlm.quant.grid import fit, grouped
from edgevlm.quant.tensor import QuantizedTensor, QuantScheme

Float64 = NDArray[np.float64]


def by_brute_force(weight: torch.Tensor, moments: torch.Tensor, scheme: QuantScheme, order: list[int]) -> Float64:
    """Optimal brain quantization in a fixed order, on the grids of the weight as it was."""
    values = weight.double().numpy().copy()
    hessian = moments.double().numpy()
    hessian = hessian + DAMPING * np.diag(hessian).mean() * np.eye(len(hessian))
    grid = fit(grouped(weight, scheme.group_size), scheme)
    scale, zero = grid.scale.double().numpy(), grid.zero.double().numpy()
    left = list(order)
    while left:
        inverse = np.linalg.inv(hessian[np.ix_(left, left)])
        column, group = left[0], left[0] // scheme.group_size
        step = np.where(scale[:, group] == 0, 1, scale[:, group])
        code = np.clip(np.round(values[:, column] / step + zero[:, group]), 0, 2**scheme.bits - 1)
        rounded = (code - zero[:, group]) * scale[:, group]
        error = (values[:, column] - rounded) / inverse[0, 0]
        values[:, left] -= error[:, None] * inverse[0]
        values[:, column] = rounded
        left = left[1:]
    return values


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [3, 4])
def test_every_step_is_that_of_optimal_brain_quantization(bits: int, symmetric: bool) -> None:
    weight, moments = normal(6, 16), moments_of(correlated(200, 16))
    scheme = QuantScheme(bits, 8, symmetric, "gptq")  # type: ignore[arg-type]
    order = np.argsort(-moments.diagonal().numpy(), kind="stable").tolist()
    expected = by_brute_force(weight, moments, scheme, order)
    np.testing.assert_allclose(gptq(weight, moments, scheme).dequantize(), expected, atol=1e-5)


def test_blocks_of_columns_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lazy update of columns behind a block is the same sum in another order."""
    weight, moments = normal(8, 96), moments_of(correlated(400, 96))
    scheme = QuantScheme(4, 8, algorithm="gptq")
    whole = gptq(weight, moments, scheme)
    monkeypatch.setattr("edgevlm.quant.gptq.BLOCK", 8)
    assert (gptq(weight, moments, scheme).codes != whole.codes).mean() < 0.01


@pytest.mark.parametrize(("act_order", "bound"), [(True, 0.6), (False, 0.8)])
@pytest.mark.parametrize(("columns", "group"), [(64, 16), (100, 32), (64, 128)])
def test_outputs_differ_less_than_after_rounding(act_order: bool, bound: float, columns: int, group: int) -> None:
    inputs, weight = correlated(500, columns), normal(24, columns)
    scheme = QuantScheme(3, group, algorithm="gptq")
    ours = gptq(weight, moments_of(inputs), scheme, act_order=act_order)
    nearest = rtn.quantize(weight, scheme)
    errors = [output_error(inputs, weight, torch.from_numpy(q.dequantize())) for q in (ours, nearest)]
    assert errors[0] < bound * errors[1]


def test_independent_inputs_leave_nothing_to_make_up_for() -> None:
    weight = normal(12, 64)
    scheme = QuantScheme(4, 32, symmetric=False, algorithm="gptq")
    ours, nearest = gptq(weight, torch.eye(64), scheme), rtn.quantize(weight, scheme)
    assert np.array_equal(ours.codes, nearest.codes)
    assert np.array_equal(ours.scales, nearest.scales)


def test_channels_that_were_never_seen_are_rounded() -> None:
    """An input that was zero all through calibration may not be so in an app."""
    inputs, weight = correlated(300, 32), normal(4, 32)
    inputs[:, 5] = 0
    scheme = QuantScheme(4, 32, algorithm="gptq")
    ours, nearest = gptq(weight, moments_of(inputs), scheme), rtn.quantize(weight, scheme)
    assert np.array_equal(ours.codes[:, 5], nearest.codes[:, 5])


def test_rows_do_not_see_each_other() -> None:
    weight, moments = normal(20, 32), moments_of(correlated(300, 32))
    scheme = QuantScheme(4, 16, algorithm="gptq")
    whole = gptq(weight, moments, scheme)
    part = gptq(weight[7:12], moments, scheme)
    assert isinstance(part, QuantizedTensor)
    assert np.array_equal(whole.codes[7:12], part.codes)


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_pruned_matrix_keeps_its_zeros(symmetric: bool) -> None:
    inputs, weight = correlated(300, 64), normal(16, 64)
    weight[:, ::2] = 0
    scheme = QuantScheme(4, 16, symmetric, "gptq")
    rounded = torch.from_numpy(gptq(weight, moments_of(inputs), scheme).dequantize())
    assert not rounded[:, ::2].any()
    nearest = torch.from_numpy(rtn.quantize(weight, scheme).dequantize())
    assert output_error(inputs, weight, rounded) < output_error(inputs, weight, nearest)


@pytest.mark.parametrize("symmetric", [True, False])
def test_scales_for_gguf_are_half_precision_numbers(symmetric: bool) -> None:
    weight, moments = normal(8, 64), moments_of(correlated(300, 64))
    scales = gptq(weight, moments, QuantScheme(4, 32, symmetric, "gptq", half_scales=True)).scales
    assert np.array_equal(scales, scales.astype(np.float16).astype(np.float32))
