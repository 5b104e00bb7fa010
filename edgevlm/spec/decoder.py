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
class DecoderSpec:
    """One causal decoder. Widths in channels; `rotary_dim` counts the leading channels of a head that rotate.

    `architecture` names the decoder for formats that need a name (GGUF's `general.architecture`): `qwen2`, `llama`,
    `phi2`, `qwen2vl`.

    Attributes:
        rope_sections: rotary frequencies that turn by the position in time, in height and in width (M-RoPE); empty
            where there is one position.
        rope_scaling: how rotary frequencies differ from those of `rope_theta`; None where they do not.
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

    @property
    def query_size(self) -> int:
        """Channels of all query heads together."""
        return self.num_attention_heads * self.head_dim

    @property
    def key_value_size(self) -> int:
        """Channels of all key (or value) heads together."""
        return self.num_key_value_heads * self.head_dim
