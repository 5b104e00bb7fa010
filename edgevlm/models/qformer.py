"""The Q-Former of BLIP-2 (arXiv 2301.12597) as a projector: a few learned queries read an image's features.

In: features of the encoder `[B, N, C]`. Out: image embeddings `[B, Q, H]`, one a query whatever N is. A LayerNorm on
the features, then BERT layers (each with its norm behind the residual sum) in which the queries attend to each other
and, in every second layer, to the features; then one linear layer into the decoder's width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgevlm.spec import QFormerSpec


class QFormerAttention(nn.Module):
    """Multi-head attention from `x` to `source`, summed with `x` and normalised."""

    def __init__(self, spec: QFormerSpec, source_size: int) -> None:
        super().__init__()
        self.heads = spec.num_attention_heads
        self.q_proj = nn.Linear(spec.hidden_size, spec.hidden_size)
        self.k_proj = nn.Linear(source_size, spec.hidden_size)
        self.v_proj = nn.Linear(source_size, spec.hidden_size)
        self.out_proj = nn.Linear(spec.hidden_size, spec.hidden_size)
        self.norm = nn.LayerNorm(spec.hidden_size, eps=spec.norm_eps)

    def forward(self, x: Tensor, source: Tensor) -> Tensor:
        """Queries `[B, Q, D]` and what they read, `[B, N, S]`, to `[B, Q, D]`."""
        batch, _, channels = x.shape

        def split(y: Tensor) -> Tensor:
            return y.view(batch, -1, self.heads, channels // self.heads).transpose(1, 2)

        mixed = F.scaled_dot_product_attention(
            split(self.q_proj(x)), split(self.k_proj(source)), split(self.v_proj(source))
        )
        return self.norm(x + self.out_proj(mixed.transpose(1, 2).reshape(x.shape)))  # type: ignore[no-any-return]


class QFormerLayer(nn.Module):
    """Self-attention, perhaps cross-attention, and an MLP."""

    def __init__(self, spec: QFormerSpec, feature_size: int, *, cross: bool) -> None:
        super().__init__()
        self.self_attention = QFormerAttention(spec, spec.hidden_size)
        self.cross_attention = QFormerAttention(spec, feature_size) if cross else None
        self.fc1 = nn.Linear(spec.hidden_size, spec.intermediate_size)
        self.fc2 = nn.Linear(spec.intermediate_size, spec.hidden_size)
        self.norm = nn.LayerNorm(spec.hidden_size, eps=spec.norm_eps)

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        """Queries `[B, Q, D]` and features `[B, N, C]` to `[B, Q, D]`."""
        x = self.self_attention(x, x)
        if self.cross_attention is not None:
            x = self.cross_attention(x, features)
        return self.norm(x + self.fc2(F.gelu(self.fc1(x))))  # type: ignore[no-any-return]


class QFormerProjector(nn.Module):
    """Features to one embedding a query."""

    def __init__(self, spec: QFormerSpec, in_features: int, out_features: int) -> None:
        super().__init__()
        self.feature_norm = nn.LayerNorm(in_features, eps=spec.feature_norm_eps)
        self.queries = nn.Parameter(torch.zeros(spec.num_queries, spec.hidden_size))
        self.query_norm = nn.LayerNorm(spec.hidden_size, eps=spec.norm_eps)
        self.layers = nn.ModuleList(
            [
                QFormerLayer(spec, in_features, cross=index % spec.cross_attention_every == 0)
                for index in range(spec.num_hidden_layers)
            ]
        )
        self.linear = nn.Linear(spec.hidden_size, out_features)

    def forward(self, features: Tensor) -> Tensor:
        """Features `[B, N, C]` to embeddings `[B, Q, H]`."""
        features = self.feature_norm(features)
        x = self.query_norm(self.queries).expand(features.shape[0], -1, -1)
        for layer in self.layers:
            x = layer(x, features)
        return self.linear(x)  # type: ignore[no-any-return]
