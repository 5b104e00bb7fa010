"""The numbers of a text tower: what a CLIP (arXiv 2103.00020) encodes text with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class TextTowerSpec:
    """A causal transformer over token ids, read at the end token and projected into a space shared with patches.

    Attributes:
        max_position_embeddings: most tokens of a text, those around it included.
        projection_size: channels of the shared space.
        end_token_id: stands behind each text.
        begin_token_id: stands in front of it; None for towers without one.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int
    projection_size: int
    end_token_id: int
    begin_token_id: int | None = None
    norm_eps: float = 1e-5
    activation: Literal["gelu", "gelu_tanh", "quick_gelu"] = "quick_gelu"
