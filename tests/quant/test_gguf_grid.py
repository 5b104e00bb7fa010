"""Rounding to the grids of GGUF, against gguf-py's quantizers, and what its blocks can and cannot hold."""

from dataclasses import replace
from typing import Literal

import gguf
import gguf.quants
import numpy as np
import pytest
import torch

from edgevlm.exporters.gguf.blocks import to_blocks
from edgevlm.quant import rtn
from edgevlm.quant.gguf_grid import misfit, quantize, storable_scales
from edgevlm.quant.tensor import QuantizedTensor, QuantScheme

HALF = QuantScheme(4, 32, half_scales=True)


def weight(rows: int, columns: int, scale: float = 0.1) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)) * scale


def near_ties(codes: int) -> torch.Tensor:
    """Groups whose values lie within three units in the last place of the middle between two codes."""
    random = np.random.default_rng(0)
    largest = (random.standard_normal((4000, 1)) * 0.03).astype(np.float16).astype(np.float64)
    steps = random.integers(1 - codes, codes - 1, (4000, 31)) + 0.5
    values = (largest * steps / codes).astype(np.float32)
    values = (values.view(np.int32) + random.integers(-3, 4, values.shape, np.int32)).view(np.float32)
    return torch.from_numpy(np.concatenate([largest.astype(np.float32), values], axis=1))


@pytest.mark.parametrize(("block", "codes"), [("q4_0", 8), ("q8_0", 127)])
def test_rounding_equals_llama_cpps_to_the_last_bit(block: Literal["q4_0", "q8_0"], codes: int) -> None:
    kind = gguf.GGMLQuantizationType[block.upper()]
    empty = torch.zeros(2, 64)
    tiny = weight(8, 64, 1e-6)  # scales that float16 holds with few bits, or as zero
    mirrored = torch.tensor([[1.0, -1.0] * 32])  # two elements of largest magnitude
    for matrix in (weight(200, 320), weight(64, 96).half(), near_ties(codes), empty, tiny, mirrored):
        theirs = gguf.quants.quantize(matrix.float().numpy(), kind)
        np.testing.assert_array_equal(to_blocks(quantize(matrix, block)), theirs)


def test_only_finite_matrices_of_whole_blocks_are_rounded() -> None:
    for values, reason in (
        (torch.full((2, 32), float("nan")), "not finite"),
        (torch.full((2, 32), float("inf")), "not finite"),
        (torch.full((2, 32), 6e6), "too large"),
        (torch.zeros(2, 40), "40 is not a multiple"),
        (torch.zeros(64), "a matrix is needed"),
    ):
        with pytest.raises(ValueError, match=reason):
            quantize(values, "q4_0")


@pytest.mark.parametrize(
    ("scheme", "columns", "reason"),
    [
        (replace(HALF, half_scales=False), 64, "scales are not float16"),
        (replace(HALF, group_size=64), 64, "groups are of 64"),
        (HALF, 48, "48 inputs are not a multiple of 32"),
        (QuantScheme(8, 32, symmetric=False, half_scales=True), 64, "no zero points"),
    ],
)
def test_what_blocks_cannot_hold_is_refused(scheme: QuantScheme, columns: int, reason: str) -> None:
    tensor = rtn.quantize(weight(4, columns), scheme)
    assert reason in (misfit(tensor) or "")
    with pytest.raises(ValueError, match=reason):
        to_blocks(tensor)


def test_offsets_that_float16_would_round_are_refused() -> None:
    scale = np.float32(np.float16(0.1))  # 11 significant bits; times 7 has more
    codes, zeros = np.zeros((1, 32), np.uint8), np.full((1, 1), 7, np.uint8)
    tensor = QuantizedTensor(codes, np.full((1, 1), scale), zeros, replace(HALF, symmetric=False))
    assert "scales and zero points" in (misfit(tensor) or "")


@pytest.mark.parametrize("symmetric", [True, False])
def test_storable_scales_fit_with_every_zero_point_and_are_near(symmetric: bool) -> None:
    exact = torch.exp(torch.linspace(-16, 8, 4000))
    scales = storable_scales(exact, symmetric=symmetric)
    products = scales[:, None] * torch.arange(16 if not symmetric else 2)
    assert torch.equal(products.half().float(), products)
    normal = exact > 1e-2
    worst = ((scales - exact).abs() / exact)[normal].max()
    assert worst < (2**-11 if symmetric else 2**-7)
