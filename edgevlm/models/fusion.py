"""LLaVA-Mini's pre-fusion (arXiv 2501.03895): a few causal decoder layers over image and prompt, run once at prefill.

In: image embeddings `[1, V, H]`, of which the last Q are the compressed ones, and text embeddings `[1, L, H]`. Out:
`[1, Q + L, H]`, what becomes of the compressed embeddings and of the text; the other rows have done their work.

The published code masks the image's placeholder and token id 0: no position attends to them, they are not counted as
positions, and their own result is thrown away for the raw embedding. Leaving them out of the text altogether computes
the same, so there is no mask here; who calls it puts the raw rows back in their places.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgevlm.models.decoder import DecoderLayer, rotary_tables
from edgevlm.spec import DecoderSpec, FusionSpec


class Fusion(nn.Module):
    """Plain decoder layers without a norm behind them; positions count from 0 over image and text together."""

    def __init__(self, spec: FusionSpec, decoder: DecoderSpec) -> None:
        super().__init__()
        self.spec = decoder
        self.image_tokens = spec.image_tokens
        self.layers = nn.ModuleList([DecoderLayer(decoder) for _ in range(spec.num_hidden_layers)])

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        """Image embeddings `[1, V, H]` and text embeddings `[1, L, H]` to `[1, Q + L, H]`."""
        x = torch.cat((image, text), dim=1)
        rotary = self.rotary(x.shape[1])
        for layer in self.layers:
            x, _ = layer(x, rotary, None, None)
        return x[:, -(self.image_tokens + text.shape[1]) :]

    def rotary(self, length: int) -> tuple[Tensor, Tensor]:
        """Rotary tables `[1, S, D / 2]` of the positions from 0."""
        spec = self.spec
        return rotary_tables(torch.arange(length)[None], spec.rotary_dim, spec.rope_theta, spec.rope_scaling)
