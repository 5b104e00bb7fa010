"""The decoder's numbers from a transformers text configuration: model types `llama`, `mistral`, `qwen2`, `phi`.

In: the raw configuration, nested (`text_config`) or the top level of a flat one, of transformers 4 or 5. Out: a
`DecoderSpec`. Absent fields have the defaults of transformers, because checkpoints leave those out. The flag
`tie_word_embeddings` is not read: whether the head is tied follows from the data (`loading.used_tensors`).
"""

from __future__ import annotations

import dataclasses
from typing import Any

from pydantic import Field

from edgevlm.errors import CheckpointError
from edgevlm.models.configs import PublishedConfig, require, section, validated
from edgevlm.models.phi import phi_decoder, read_phi_config
from edgevlm.spec import DecoderSpec, RopeScaling

TEXT_TYPES = ("llama", "mistral", "qwen2", "phi")


class _Llama(PublishedConfig):
    """Fields of Llama's and Qwen2's configurations; the defaults are Llama's."""

    # The upper bounds stop a config that would make the loader build for hours before a tensor is compared.
    hidden_size: int = Field(default=4096, gt=0, le=1 << 16)
    intermediate_size: int = Field(default=11008, gt=0, le=1 << 18)
    num_hidden_layers: int = Field(default=32, gt=0, le=512)
    num_attention_heads: int = Field(default=32, gt=0, le=1024)
    num_key_value_heads: int | None = Field(default=None, gt=0, le=1024)
    head_dim: int | None = Field(default=None, gt=0, le=1024)
    rms_norm_eps: float = Field(default=1e-6, gt=0, lt=1)
    rope_theta: float = Field(default=1e4, gt=1, allow_inf_nan=False)
    max_position_embeddings: int = Field(default=2048, gt=0, le=1 << 24)
    tokenizer_model_max_length: int | None = Field(default=None, gt=0)


class _Qwen2(_Llama):
    intermediate_size: int = Field(default=22016, gt=0, le=1 << 18)
    num_key_value_heads: int | None = Field(default=32, gt=0, le=1024)
    max_position_embeddings: int = Field(default=32768, gt=0, le=1 << 24)


class _Mistral(_Llama):
    intermediate_size: int = Field(default=14336, gt=0, le=1 << 18)
    num_key_value_heads: int | None = Field(default=8, gt=0, le=1024)
    max_position_embeddings: int = Field(default=131072, gt=0, le=1 << 24)
    sliding_window: int | None = 4096


_FIELDS: dict[str, type[_Llama]] = {"llama": _Llama, "mistral": _Mistral, "qwen2": _Qwen2}


#: What decoders that resemble these have: Cohere's rotary order, norms of queries and keys.
_NOT_COMPUTED = ("rope_interleaved", "qk_layer_norms", "use_qk_norm")
_ROPE_FIELDS = (
    *("rope_type", "type", "rope_theta", "partial_rotary_factor", "factor"),
    *("low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
)


class _Llama3Rope(PublishedConfig):
    factor: float = Field(ge=1, le=1024)
    low_freq_factor: float = Field(gt=0)
    high_freq_factor: float = Field(gt=0)
    original_max_position_embeddings: int = Field(gt=0, le=1 << 24)


def read_decoder(
    raw: dict[str, Any], kind: str, where: str, *, vocab_size: int, tied: bool, head_bias: bool = True
) -> DecoderSpec:
    """The numbers of a decoder.

    Args:
        raw: the text configuration; nested ones as they stand, flat ones whole.
        kind: one of `TEXT_TYPES`; a nested configuration's `model_type`.
        where: the file, for messages.
        vocab_size: rows of the embedding, read from its tensor.
        tied: the head is the embedding, by the data.
        head_bias: Phi's head has a bias, by the data; inside transformers' LLaVA it has none.

    Raises:
        CheckpointError: a field has a value that does not fit, or asks for what is not supported.
    """
    require(raw, "quantization_config", (), where)
    require(raw, "layer_types", _full_attention(raw), where)
    if kind == "phi":
        require(raw, "qk_layernorm", (False,), where)
        # The flag is overwritten because nested configurations hold it whatever the data say.
        fields = {"num_attention_heads": 32, **raw, "model_type": "phi", "tie_word_embeddings": False}
        decoder = phi_decoder(read_phi_config(fields, where), vocab_size)
        return dataclasses.replace(decoder, tied_embeddings=tied, head_bias=head_bias)
    if kind not in _FIELDS:
        raise CheckpointError(
            f"text model type {kind!r:.60} is not supported", where, f"known: {', '.join(TEXT_TYPES)}"
        )
    require(raw, "hidden_act", ("silu",), where)
    require(raw, "use_sliding_window", (False,), where)
    require(raw, "attention_bias", (kind == "qwen2",), where)
    require(raw, "mlp_bias", (False,), where)
    for field in _NOT_COMPUTED:
        require(raw, field, (False,), where)
    if kind == "llama":
        require(raw, "sliding_window", (), where)
    rope = rope_fields(raw, where)
    require({**raw, **rope}, "partial_rotary_factor", (1, 1.0), where)
    config = validated(_FIELDS[kind], {**raw, **rope}, where)
    # Absent is not null: transformers then takes Mistral 7B v0.1's window.
    if isinstance(config, _Mistral) and config.sliding_window is not None:
        raise CheckpointError(
            f"config.json: sliding_window {config.sliding_window} is not supported", where, "supported: null"
        )
    if config.head_dim is None and config.hidden_size % config.num_attention_heads:
        raise CheckpointError("config.json: num_attention_heads does not divide hidden_size", where)
    key_value_heads = config.num_key_value_heads or config.num_attention_heads
    if config.num_attention_heads % key_value_heads:
        raise CheckpointError("config.json: num_key_value_heads does not divide num_attention_heads", where)
    head_dim = config.head_dim or config.hidden_size // config.num_attention_heads
    return DecoderSpec(
        # Without a window, Mistral computes what Llama does.
        architecture="llama" if kind == "mistral" else kind,
        vocab_size=vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=key_value_heads,
        head_dim=head_dim,
        rotary_dim=head_dim,
        rope_theta=config.rope_theta,
        norm_eps=config.rms_norm_eps,
        max_position_embeddings=min(
            config.max_position_embeddings, config.tokenizer_model_max_length or config.max_position_embeddings
        ),
        qkv_bias=kind == "qwen2",
        tied_embeddings=tied,
        rope_scaling=_rope_scaling(rope, where),
    )


def rope_fields(raw: dict[str, Any], where: str) -> dict[str, Any]:
    """The rotary settings: `rope_scaling`, else `rope_parameters` (transformers 5); they win over what stands flat."""
    return section(raw, "rope_scaling", where) or section(raw, "rope_parameters", where)


def configured_stops(*configs: dict[str, Any]) -> list[int | None]:
    """`eos_token_id` of the configurations that have one: a number or a list."""
    stops: list[int | None] = []
    for config in configs:
        value = config.get("eos_token_id")
        stops += [stop for stop in (value if isinstance(value, list) else [value]) if type(stop) is int]
    return stops


def _full_attention(raw: dict[str, Any]) -> tuple[list[str], ...]:
    """The only `layer_types` that are supported, in the length that the configuration has."""
    kinds = raw.get("layer_types")
    return (["full_attention"] * len(kinds),) if isinstance(kinds, list) else ()


def _rope_scaling(rope: dict[str, Any], where: str) -> RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "llama3"):
        raise CheckpointError(
            f"config.json: rope scaling {kind!r:.60} is not supported", where, "supported: 'default' or 'llama3'"
        )
    for field in sorted(rope.keys() - set(_ROPE_FIELDS)):
        require(rope, field, (), where)
    if kind == "default":
        return None
    fields = validated(_Llama3Rope, rope, where)
    if fields.low_freq_factor >= fields.high_freq_factor:
        raise CheckpointError("config.json: low_freq_factor is not below high_freq_factor", where)
    return RopeScaling(
        fields.factor, fields.low_freq_factor, fields.high_freq_factor, fields.original_max_position_embeddings
    )
