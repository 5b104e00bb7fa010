"""How a decoder of the IR is named and described in GGUF.

In: a `DecoderSpec`. Out: whether llama.cpp's graph of that architecture computes it, the GGUF name of every tensor, and
the hyperparameters. Names and keys follow the GGUF specification (ggml/docs/gguf.md) and llama.cpp's loader. Adding an
architecture is one entry in `ARCHITECTURES`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from edgevlm.models.decoder import rotary_factors, rotary_periods
from edgevlm.spec import DecoderSpec, ModelSpec

GGUF_TYPES = ("f32", "f16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q4_k_m")


@dataclass(frozen=True)
class Architecture:
    """What llama.cpp's graph of one architecture fixes.

    Attributes:
        norm, residual, mlp: as in `DecoderSpec`.
        qkv_bias: whether the graph expects biases on q, k and v; None where it takes them or not.
        dense_bias: biases on the attention output, the MLP and the head.
        interleaved_rotary: rotates neighbouring channels (x0, x1) instead of halves, so q and k rows are reordered.
        free_head_dim: heads x head_dim may differ from hidden_size.
        rope_sections: positions on three axes (M-RoPE).
        rope_factors: reads a factor for each rotary frequency (Llama 3.1).
    """

    norm: str
    residual: str
    mlp: str
    qkv_bias: bool | None
    dense_bias: bool
    interleaved_rotary: bool
    free_head_dim: bool
    rope_sections: bool = False
    rope_factors: bool = False


ARCHITECTURES = {
    "llama": Architecture("rms", "sequential", "swiglu", None, False, True, True, rope_factors=True),
    "qwen2": Architecture("rms", "sequential", "swiglu", True, False, False, False),
    "qwen2vl": Architecture("rms", "sequential", "swiglu", True, False, False, False, rope_sections=True),
    "phi2": Architecture("layer", "parallel", "gelu_new", True, True, False, False),
}

_LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.fc1": "ffn_up",
    "mlp.fc2": "ffn_down",
}
_OTHER_NAMES = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}
_LAYER = re.compile(r"layers\.(\d+)\.(.+)\.(weight|bias)")


def supports(spec: ModelSpec, gguf_type: str) -> str | None:
    """Why this decoder cannot become a GGUF of that type, or None."""
    if gguf_type not in GGUF_TYPES:
        return f"unknown GGUF type {gguf_type!r}; known: {', '.join(GGUF_TYPES)}"
    decoder = spec.decoder
    if decoder.token_drop is not None:
        return (
            f"llama.cpp runs all layers over the same tokens, but {decoder.token_drop.name} drops image tokens between "
            "layers; use a method in front of the decoder (divprune, attention), or the onnx format"
        )
    name = decoder.architecture
    architecture = ARCHITECTURES.get(name)
    if architecture is None:
        return f"no GGUF export of architecture {name!r}; known: {', '.join(ARCHITECTURES)}"
    if decoder.qk_norm != "none" or decoder.post_attention_norm != "none":
        return (
            f"llama.cpp's {name} graph has no q/k norm and no norm on the attention branch, and neither can be folded "
            "into weights; use the onnx format"
        )
    return _mismatch(decoder, architecture)


def _mismatch(decoder: DecoderSpec, architecture: Architecture) -> str | None:
    name = decoder.architecture
    for field in ("norm", "residual", "mlp"):
        have, need = getattr(decoder, field), getattr(architecture, field)
        if have != need:
            return f"llama.cpp's {name} graph has {field} {need!r}, the model has {have!r}"
    if bool(decoder.rope_sections) != architecture.rope_sections:
        return f"llama.cpp's {name} graph {'needs' if architecture.rope_sections else 'has no'} positions on three axes"
    if decoder.rope_scaling is not None and not architecture.rope_factors:
        return f"llama.cpp's {name} graph does not scale rotary frequencies"
    dense = {decoder.attention_out_bias, decoder.mlp_bias}
    if dense != {architecture.dense_bias} or decoder.head_bias != architecture.dense_bias:
        return f"llama.cpp's {name} graph {'needs' if architecture.dense_bias else 'has no'} biases on its dense layers"
    if architecture.qkv_bias is not None and decoder.qkv_bias != architecture.qkv_bias:
        return f"llama.cpp's {name} graph needs biases on q, k and v"
    if decoder.query_size != decoder.hidden_size and not architecture.free_head_dim:
        return f"llama.cpp's {name} graph needs heads x head_dim = hidden_size ({decoder.hidden_size})"
    if architecture.interleaved_rotary and decoder.rotary_dim != decoder.head_dim:
        return f"llama.cpp's {name} graph rotates all {decoder.head_dim} channels of a head, not {decoder.rotary_dim}"
    return None


def tensor_name(name: str) -> str | None:
    """GGUF's name of the IR parameter `name` (`layers.3.mlp.up_proj.weight`), or None if it has none."""
    if match := _LAYER.fullmatch(name):
        short = _LAYER_NAMES.get(match[2])
        return f"blk.{match[1]}.{short}.{match[3]}" if short else None
    stem, _, kind = name.rpartition(".")
    return f"{_OTHER_NAMES[stem]}.{kind}" if stem in _OTHER_NAMES else None


def reorder_rotary(name: str, values: NDArray[Any], spec: DecoderSpec) -> NDArray[Any]:
    """Rows of q and k for the architecture's rotary layout: halves (i, i + d/2) become neighbours (2i, 2i + 1).

    Args:
        name: the GGUF name.
        values: `[heads * head_dim, ...]`; other tensors come back as they are.
    """
    heads = {"attn_q": spec.num_attention_heads, "attn_k": spec.num_key_value_heads}.get(name.split(".")[-2])
    if heads is None or not ARCHITECTURES[spec.architecture].interleaved_rotary:
        return values
    halves = values.reshape(heads, 2, spec.head_dim // 2, -1)
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(values.shape)


def rope_factors(spec: DecoderSpec) -> Tensor | None:
    """`rope_freqs.weight` `[D / 2]`: what llama.cpp divides each rotary frequency by; None without scaling."""
    if spec.rope_scaling is None:
        return None
    return rotary_factors(rotary_periods(spec.rotary_dim, spec.rope_theta), spec.rope_scaling)


def add_hyperparameters(writer: gguf.GGUFWriter, spec: ModelSpec) -> None:
    """Write the keys that llama.cpp's loader reads for this decoder."""
    decoder = spec.decoder
    writer.add_name(spec.name)
    if spec.licence != "unknown":
        writer.add_license(spec.licence)
    writer.add_vocab_size(decoder.vocab_size)
    writer.add_context_length(decoder.max_position_embeddings)
    writer.add_embedding_length(decoder.hidden_size)
    writer.add_block_count(decoder.num_hidden_layers)
    writer.add_feed_forward_length(decoder.intermediate_size)
    writer.add_head_count(decoder.num_attention_heads)
    writer.add_head_count_kv(decoder.num_key_value_heads)
    writer.add_key_length(decoder.head_dim)
    writer.add_value_length(decoder.head_dim)
    writer.add_rope_dimension_count(decoder.rotary_dim)
    writer.add_rope_freq_base(decoder.rope_theta)
    if decoder.rope_sections:
        # llama.cpp has room for a fourth axis.
        writer.add_rope_dimension_sections([*decoder.rope_sections, 0])
    if decoder.norm == "rms":
        writer.add_layer_norm_rms_eps(decoder.norm_eps)
    else:
        writer.add_layer_norm_eps(decoder.norm_eps)
