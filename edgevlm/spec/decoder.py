"""The numbers of a causal decoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3.1's longer context: rotary frequencies of long waves are divided by `factor`.

    Waves shorter than `original_max_position_embeddings / high_freq_factor` positions stay, those longer than
    `original_max_position_embeddings / low_freq_factor` are stretched whole, those between in part.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int
    kind: Literal["llama3"] = "llama3"


@dataclass(frozen=True)
class DropStage:
    """Behind the first `after_layers` layers, `keep` tokens of each image go on."""

    after_layers: int
    keep: int


@dataclass(frozen=True)
class TokenDropSpec:
    """Image tokens that stop on their way through the decoder (`edgevlm.models.token_drop`, docs/pruning-decoder.md).

    Attributes:
        name: of the method.
        score: what a stage chooses by: the last token's `attention`, or how little a token is a `duplicate`.
        image_tokens: of an image in front of the first stage.
        stages: with ascending layers and falling counts.
        image_pivots: tokens of an image that are kept and compared with, for `duplicate`.
        text_pivots: tokens behind an image that are compared with, for `duplicate`.
    """

    name: str
    score: Literal["attention", "duplicate"]
    image_tokens: int
    stages: tuple[DropStage, ...]
    image_pivots: int = 0
    text_pivots: int = 0

    def entering(self, stage: int) -> int:
        """Tokens of an image in front of a stage."""
        return self.stages[stage - 1].keep if stage else self.image_tokens

    def stage_behind(self, layer: int) -> int | None:
        """The stage right behind a layer, if there is one."""
        return next((index for index, stage in enumerate(self.stages) if stage.after_layers == layer + 1), None)

    def part(self, layer: int) -> int:
        """Stages in front of a layer."""
        return sum(stage.after_layers <= layer for stage in self.stages)


@dataclass(frozen=True)
class DecoderSpec:
    """One causal decoder. Widths in channels; `rotary_dim` counts the leading channels of a head that rotate.

    `architecture` names the decoder for formats that need a name (GGUF's `general.architecture`): `qwen2`, `llama`,
    `phi2`, `qwen2vl`.

    Attributes:
        rope_sections: rotary frequencies that turn by the position in time, in height and in width (M-RoPE); empty
            where there is one position.
        rope_scaling: how rotary frequencies differ from those of `rope_theta`; None where they do not.
        token_drop: image tokens that do not reach all layers; None where they do.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rotary_dim: int
    rope_theta: float
    norm_eps: float
    max_position_embeddings: int
    norm: Literal["rms", "layer"] = "rms"
    residual: Literal["sequential", "parallel"] = "sequential"
    mlp: Literal["swiglu", "gelu_new"] = "swiglu"
    qkv_bias: bool = False
    attention_out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: Literal["none", "rms", "layer"] = "none"
    post_attention_norm: Literal["none", "rms"] = "none"
    tied_embeddings: bool = True
    head_bias: bool = False
    rope_sections: tuple[int, ...] = ()
    rope_scaling: RopeScaling | None = None
    token_drop: TokenDropSpec | None = None

    @property
    def query_size(self) -> int:
        """Channels of all query heads together."""
        return self.num_attention_heads * self.head_dim

    @property
    def key_value_size(self) -> int:
        """Channels of all key (or value) heads together."""
        return self.num_key_value_heads * self.head_dim
