"""The choice of bits and blocks."""

import numpy as np
import pytest
import torch

from edgevlm.quant.schemes import group_size, scheme_for, store, vision_scheme
from edgevlm.quant.tensor import QuantizedTensor, QuantScheme


@pytest.mark.parametrize(
    ("columns", "expected"), [(896, 128), (4864, 128), (2560, 128), (960, 64), (1000, 32), (256, 32)]
)
def test_block_divides_wide_matrices_and_is_small_in_narrow_ones(columns: int, expected: int) -> None:
    assert group_size(columns) == expected


def test_precision_decides_bits() -> None:
    assert scheme_for("layers.0.mlp.down_proj.weight", "linear", 4864, "int4") == QuantScheme(4, 128)
    assert scheme_for("embed_tokens.weight", "embedding", 896, "int4") == QuantScheme(4, 128)
    assert scheme_for("lm_head.weight", "head", 896, "int8") == QuantScheme(8, 128)
    assert scheme_for("lm_head.weight", "head", 896, "fp16") == "float16"
    assert scheme_for("norm.weight", "norm", 896, "int4") == "float32"


def test_layer_scales_of_the_vision_tower_keep_float32() -> None:
    assert vision_scheme((1536, 1, 1), "fp16") == "float32"
    assert vision_scheme((1536, 1, 7, 7), "fp16") == "float16"


def test_store_returns_the_type_asked_for() -> None:
    matrix = torch.ones(2, 32, dtype=torch.bfloat16)
    assert isinstance(store(matrix, QuantScheme(4, 32)), QuantizedTensor)
    half = store(matrix, "float16")
    assert isinstance(half, np.ndarray)
    assert half.dtype == np.float16


def test_overflow_of_float16_is_refused() -> None:
    with pytest.raises(ValueError, match="float16"):
        store(torch.full((2, 2), 1e6), "float16")
