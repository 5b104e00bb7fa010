"""Blocks of quantized matrices: ggml reads from them exactly the values that the matrix has."""

from pathlib import Path
from typing import Literal

import gguf
import gguf.quants
import numpy as np
import pytest
import torch
from gguf_models import QWEN2, make_model

from edgevlm.exporters.gguf.blocks import block_type, to_blocks
from edgevlm.exporters.gguf.exporter import export
from edgevlm.quant import rtn
from edgevlm.quant.gguf_grid import quantize
from edgevlm.quant.tensor import QuantizedTensor, QuantScheme


def any_codes(scheme: QuantScheme, scale_bits: int) -> QuantizedTensor:
    """A matrix of random codes and zero points; scales of either sign where they may have one."""
    random = np.random.default_rng(0)
    top = 1 << scheme.bits
    scales = np.ldexp(random.integers(1, 1 << scale_bits, (40, 3)), -14).astype(np.float32)
    if scheme.symmetric:
        scales *= random.choice(np.array([-1, 1], np.float32), scales.shape)
    zeros = None if scheme.symmetric else random.integers(0, top, (40, 3), np.uint8)
    return QuantizedTensor(random.integers(0, top, (40, 96), np.uint8), scales, zeros, scheme)


@pytest.mark.parametrize(
    ("bits", "symmetric", "kind"),
    [(4, True, "Q4_0"), (3, True, "Q4_0"), (4, False, "Q4_1"), (3, False, "Q4_1"), (8, True, "Q8_0")],
)
def test_blocks_hold_exactly_the_values(bits: Literal[3, 4, 8], symmetric: bool, kind: str) -> None:
    tensor = any_codes(QuantScheme(bits, 32, symmetric, half_scales=True), 11 if symmetric else 7)
    blocks = to_blocks(tensor)
    assert block_type(tensor.scheme).name == kind
    read = gguf.quants.dequantize(blocks, block_type(tensor.scheme))
    np.testing.assert_array_equal(read.view(np.int32), tensor.dequantize().view(np.int32))


@pytest.mark.parametrize("gguf_type", ["q4_0", "q8_0"])
def test_rounding_equals_a_run_of_llama_cpp(
    gguf_type: Literal["q4_0", "q8_0"], files: dict[str, Path], tmp_path: Path
) -> None:
    model = make_model(QWEN2, files)
    export(model, tmp_path, gguf_type=gguf_type, progress=lambda *_: None)
    held = {tensor.name: tensor.data for tensor in gguf.GGUFReader(tmp_path / f"model-{gguf_type}.gguf").tensors}
    state = model.decoder.state_dict()
    for theirs, ours in (
        ("token_embd", "embed_tokens"),
        ("blk.0.attn_q", "layers.0.self_attn.q_proj"),
        ("blk.1.ffn_down", "layers.1.mlp.down_proj"),
    ):
        np.testing.assert_array_equal(held[f"{theirs}.weight"], to_blocks(quantize(state[f"{ours}.weight"], gguf_type)))


def test_grids_with_half_scales_fit_without_rounding() -> None:
    matrix = torch.randn(24, 128, generator=torch.Generator().manual_seed(0))
    for symmetric in (True, False):
        tensor = rtn.quantize(matrix, QuantScheme(4, 32, symmetric, half_scales=True))
        read = gguf.quants.dequantize(to_blocks(tensor), block_type(tensor.scheme))
        np.testing.assert_array_equal(read, tensor.dequantize())
