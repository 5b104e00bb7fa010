"""The parts of a CLIP (arXiv 2103.00020) that its vision tower's features do not need: text, and the shared space.

In: ids of a text, or features of patches. Out: vectors of the space in which images and captions of images meet.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgevlm.models.vit import VitAttention, VitLayer
from edgevlm.spec import TextTowerSpec, VitSpec


class _CausalAttention(VitAttention):
    """As in the vision tower, but no token sees what follows it."""

    causal = True


class TextTower(nn.Module):
    """Ids to vectors; what stands behind the end token changes nothing, so texts need no padding."""

    def __init__(self, spec: TextTowerSpec) -> None:
        super().__init__()
        layer = VitSpec(
            hidden_size=spec.hidden_size,
            intermediate_size=spec.intermediate_size,
            num_hidden_layers=spec.num_hidden_layers,
            num_attention_heads=spec.num_attention_heads,
            patch_size=1,
            grid=1,
            norm_eps=spec.norm_eps,
            activation=spec.activation,
        )
        self.embed_tokens = nn.Embedding(spec.vocab_size, spec.hidden_size)
        self.positions = nn.Parameter(torch.zeros(spec.max_position_embeddings, spec.hidden_size))
        self.layers = nn.ModuleList([VitLayer(layer) for _ in range(spec.num_hidden_layers)])
        for each in self.layers:
            each.attention = _CausalAttention(layer)
        self.post_norm = nn.LayerNorm(spec.hidden_size, eps=spec.norm_eps)
        self.projection = nn.Linear(spec.hidden_size, spec.projection_size, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Vectors `[B, P]`, as long as they come, of ids `[B, L]` that end in the end token."""
        x = self.embed_tokens(ids) + self.positions[: ids.shape[1]]
        for layer in self.layers:
            x = layer(x)
        return self.projection(self.post_norm(x[:, -1]))  # type: ignore[no-any-return]


class PatchHead(nn.Module):
    """What CLIP does to its class token at the end, for features of patches: a norm and a projection."""

    def __init__(self, features: int, projection: int, norm_eps: float) -> None:
        super().__init__()
        self.post_norm = nn.LayerNorm(features, eps=norm_eps)
        self.projection = nn.Linear(features, projection, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Features `[B, N, C]` to `[B, N, P]`."""
        return self.projection(self.post_norm(x))  # type: ignore[no-any-return]
