"""The parametric decoder against transformers' Llama, Qwen2, Qwen3 and Phi on random weights."""

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PhiConfig, Qwen2Config, Qwen3Config

from edgevlm.models.decoder import Decoder
from edgevlm.spec import DecoderSpec

COMMON: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
PHI = {**COMMON, "num_key_value_heads": 4}
CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "llama": (
        LlamaConfig(**COMMON, rms_norm_eps=1e-5, rope_theta=1e4, tie_word_embeddings=False),
        {"tied_embeddings": False, "norm_eps": 1e-5, "rope_theta": 1e4},
    ),
    "qwen2": (
        Qwen2Config(**COMMON, rms_norm_eps=1e-6, rope_theta=1e6, tie_word_embeddings=True),
        {"qkv_bias": True, "rope_theta": 1e6},
    ),
    "qwen3": (
        Qwen3Config(**COMMON, head_dim=32, rms_norm_eps=1e-6, rope_theta=1e6, tie_word_embeddings=True),
        {"head_dim": 32, "rotary_dim": 32, "qk_norm": "rms", "rope_theta": 1e6},
    ),
    "phi2": (
        PhiConfig(**PHI, layer_norm_eps=1e-5, partial_rotary_factor=0.5, tie_word_embeddings=False),
        {
            "num_key_value_heads": 4,
            "rotary_dim": 8,
            "norm": "layer",
            "norm_eps": 1e-5,
            "rope_theta": 1e4,
            "residual": "parallel",
            "mlp": "gelu_new",
            "qkv_bias": True,
            "attention_out_bias": True,
            "mlp_bias": True,
            "tied_embeddings": False,
            "head_bias": True,
        },
    ),
}


def build(name: str) -> tuple[Any, Decoder]:
    """The reference and ours with the same random weights."""
    config, fields = CASES[name]
    torch.manual_seed(1)
    reference = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    for parameter in reference.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    spec = DecoderSpec(
        **{
            **COMMON,
            "architecture": name,
            "head_dim": 16,
            "rotary_dim": 16,
            "norm_eps": 1e-6,
            "rope_theta": 1e4,
            **fields,
        }
    )
    decoder = Decoder(spec).eval()
    state = {}
    for key, value in reference.state_dict().items():
        key = key.removeprefix("model.").replace("self_attn.dense", "self_attn.o_proj")
        state[key.replace("final_layernorm", "norm")] = value
    if spec.tied_embeddings:
        del state["lm_head.weight"]
    decoder.load_state_dict(state)
    return reference, decoder


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_logits_equal_transformers(name: str) -> None:
    reference, decoder = build(name)
    ids = torch.randint(0, 96, (2, 11))
    expected = reference(ids).logits
    logits, _ = decoder(decoder.embed_tokens(ids), torch.arange(11).expand(2, -1))
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_cached_steps_equal_one_pass(name: str) -> None:
    _, decoder = build(name)
    embeddings = torch.randn(1, 9, 64)
    whole, _ = decoder(embeddings, torch.arange(9)[None])
    pieces, cache = [], None
    for start, end in ((0, 4), (4, 8), (8, 9)):
        logits, cache = decoder(embeddings[:, start:end], torch.arange(start, end)[None], cache)
        pieces.append(logits)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_attention_branch_norm_scales_the_attention_branch_alone() -> None:
    """TinyGPT-V: out = x + RMS(attention(h)) + mlp(h), checked against that formula."""
    _, fields = CASES["phi2"]
    spec = DecoderSpec(
        **{
            **COMMON,
            **fields,
            "architecture": "phi2",
            "head_dim": 16,
            "num_hidden_layers": 1,
            "qk_norm": "layer",
            "post_attention_norm": "rms",
        }
    )
    torch.manual_seed(2)
    decoder = Decoder(spec).eval()
    layer: Any = decoder.layers[0]
    x = torch.randn(1, 5, 64)
    rotary = (torch.ones(1, 5, 4), torch.zeros(1, 5, 4))
    normed = layer.input_layernorm(x)
    attention, _ = layer.self_attn(normed, rotary, None, None)
    scaled = attention * torch.rsqrt(attention.pow(2).mean(-1, keepdim=True) + 1e-6)
    expected = x + scaled * layer.attention_branch_norm.weight + layer.mlp(normed)
    torch.testing.assert_close(layer(x, rotary, None, None)[0], expected, atol=1e-5, rtol=1e-5)
