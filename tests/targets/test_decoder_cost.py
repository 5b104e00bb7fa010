"""What a decoder costs, against torch's own counters on the modules themselves."""

import dataclasses

import pytest
import torch
from decoders import QWEN2
from torch.utils.flop_counter import FlopCounterMode

from edgevlm.models.decoder import Decoder
from edgevlm.spec import DecoderSpec, DropStage, TokenDropSpec
from edgevlm.targets.decoder_cost import (
    cache_bytes,
    embedding_parameters,
    layer_matrices,
    layer_parameters,
    prefill_flops,
    prefill_scratch_bytes,
)

PHI = dataclasses.replace(QWEN2, mlp="gelu_new", norm="layer", residual="parallel", tied_embeddings=False)


@pytest.mark.parametrize("spec", [QWEN2, PHI], ids=["swiglu", "gelu"])
def test_matrices_are_those_of_the_module(spec: DecoderSpec) -> None:
    with torch.device("meta"):
        decoder = Decoder(spec)
    shapes = sorted(tuple(tensor.shape) for tensor in decoder.layers[0].parameters() if tensor.ndim == 2)
    assert shapes == sorted(layer_matrices(spec))
    tables = sum(
        tensor.numel() for name, tensor in decoder.named_parameters() if "embed" in name or "lm_head.w" in name
    )
    assert tables == embedding_parameters(spec) * (1 if spec.tied_embeddings else 2)
    matrices = sum(tensor.numel() for tensor in decoder.parameters() if tensor.ndim == 2)
    assert matrices == tables + spec.num_hidden_layers * layer_parameters(spec)


def test_operations_are_those_that_torch_counts() -> None:
    """Torch counts a causal mask's zeros, and the head for each position; the rest agrees to the last operation."""
    length = 40
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        decoder = Decoder(QWEN2)
        decoder(torch.zeros(1, length, QWEN2.hidden_size), torch.arange(length)[None])
    head = 2 * embedding_parameters(QWEN2)
    whole_squares = QWEN2.num_hidden_layers * 2 * QWEN2.query_size * length * (length - 1)
    assert counter.get_total_flops() == prefill_flops(QWEN2, 30, 10) + whole_squares + (length - 1) * head


def test_dropped_tokens_cost_nothing_behind_their_layer() -> None:
    """All layers with 30 tokens, less the second with 24 of them gone."""
    drop = TokenDropSpec("fastv", "attention", 30, (DropStage(1, 6),))
    dropping = dataclasses.replace(QWEN2, num_hidden_layers=2, token_drop=drop)
    plain = dataclasses.replace(dropping, token_drop=None)
    saved = prefill_flops(plain, 30, 10) - prefill_flops(dropping, 30, 10)
    one_layer = dataclasses.replace(plain, num_hidden_layers=1)
    assert saved == prefill_flops(one_layer, 30, 10) - prefill_flops(one_layer, 6, 10)
    assert cache_bytes(plain, 30, 100, 2) - cache_bytes(dropping, 30, 100, 2) == 24 * 2 * QWEN2.key_value_size * 2


def test_scratch_grows_with_the_prompt() -> None:
    one, many = (prefill_scratch_bytes(QWEN2, length, 4) for length in (1, 101))
    assert many - one >= 100 * 4 * (QWEN2.hidden_size + 2 * QWEN2.intermediate_size)
