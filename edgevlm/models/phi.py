"""Phi's `config.json` (model type `phi`: Phi-1, Phi-1.5, Phi-2), in the forms of transformers 4 and 5."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from edgevlm.errors import CheckpointError
from edgevlm.models.configs import PublishedConfig, require, validated
from edgevlm.spec import DecoderSpec


class PhiConfig(PublishedConfig):
    """The fields that matter."""

    model_type: str
    hidden_size: int = Field(gt=0, le=1 << 16)
    intermediate_size: int = Field(gt=0, le=1 << 18)
    num_hidden_layers: int = Field(gt=0, le=512)
    num_attention_heads: int = Field(gt=0, le=1024)
    num_key_value_heads: int | None = Field(default=None, gt=0, le=1024)
    hidden_act: str = "gelu_new"
    layer_norm_eps: float = Field(default=1e-5, gt=0, lt=1)
    rope_theta: float = Field(default=1e4, gt=1, allow_inf_nan=False)
    partial_rotary_factor: float = Field(default=0.5, gt=0, le=1)
    max_position_embeddings: int = Field(default=2048, gt=0, le=1 << 24)
    tie_word_embeddings: bool = False
    eos_token_id: int | list[int] | None = None

    @property
    def stops(self) -> list[int | None]:
        """Ids that end a text."""
        return list(self.eos_token_id) if isinstance(self.eos_token_id, list) else [self.eos_token_id]


def read_phi_config(raw: dict[str, Any], where: str) -> PhiConfig:
    """Validate a Phi configuration.

    Raises:
        CheckpointError: a field is missing, has the wrong type, or asks for what is not supported.
    """
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if isinstance(rope, dict):
        if rope.get("rope_type", rope.get("type", "default")) != "default":
            raise CheckpointError("rope scaling is not supported for this family", where, "is this Phi-2?")
        raw = {**raw, **{key: rope[key] for key in ("rope_theta", "partial_rotary_factor") if key in rope}}
    require(raw, "quantization_config", (), where)
    config = validated(PhiConfig, raw, where)
    for field, wanted in (("model_type", "phi"), ("hidden_act", "gelu_new"), ("tie_word_embeddings", False)):
        if getattr(config, field) != wanted:
            raise CheckpointError(
                f"config.json: {field} {getattr(config, field)!r:.60} is not supported, only {wanted!r}",
                where,
                "is this Phi-2?",
            )
    if config.hidden_size % config.num_attention_heads:
        raise CheckpointError("config.json: num_attention_heads does not divide hidden_size", where, "is this Phi-2?")
    return config


def phi_decoder(config: PhiConfig, vocab_size: int) -> DecoderSpec:
    """The numbers of a plain Phi decoder."""
    head_dim = config.hidden_size // config.num_attention_heads
    return DecoderSpec(
        architecture="phi2",
        vocab_size=vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads or config.num_attention_heads,
        head_dim=head_dim,
        rotary_dim=int(config.partial_rotary_factor * head_dim),
        rope_theta=config.rope_theta,
        norm_eps=config.layer_norm_eps,
        max_position_embeddings=config.max_position_embeddings,
        norm="layer",
        residual="parallel",
        mlp="gelu_new",
        qkv_bias=True,
        attention_out_bias=True,
        mlp_bias=True,
        tied_embeddings=False,
        head_bias=True,
    )
