"""LLaVA-Mini's encoder (arXiv 2501.03895): CLIP, and a compressor whose few queries look at all patches.

In: pixels of one image, its parts one below the other, `[B, 3, P R, R]`. Out: features `[B, P N + Q, C]`: of each part,
the whole image last, then those of the queries. The projector behind it treats all rows alike.

With `split` 2 the image is seen as its four quarters and then whole. The compressor needs the quarters' patches as one
map of 2 g by 2 g, so all five parts go through one graph: one engine call an image and one file, whatever the split.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgevlm.models.vit import Vit, resize_positions
from edgevlm.spec import CompressedVitSpec


class Compressor(nn.Module):
    """Learned queries attend once to all patches of a square map.

    Queries and keys carry a learned table of positions, one row a query; for the keys it is resized to the map.
    """

    def __init__(self, spec: CompressedVitSpec) -> None:
        super().__init__()
        width, side = spec.vit.hidden_size, spec.vit.grid * spec.split
        self.heads = spec.query_heads
        self.query = nn.Parameter(torch.zeros(spec.queries, width))
        self.pos_embed = nn.Parameter(torch.zeros(spec.queries, width))
        self.ln_q = nn.LayerNorm(width)
        self.ln_kv = nn.LayerNorm(width)
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)
        # Resizing is linear: row n says how much of each query's position patch n gets. On no other device, since it
        # is computed, not loaded.
        with torch.device("cpu"):
            resized = resize_positions(torch.eye(spec.queries), side, 0)
        self.resize: Tensor
        self.register_buffer("resize", resized, persistent=False)

    def forward(self, patches: Tensor) -> Tensor:
        """Features `[B, N, C]` of a square map, row by row, to `[B, Q, C]`."""
        batch, _, width = patches.shape

        def split(x: Tensor) -> Tensor:
            return x.view(batch, -1, self.heads, width // self.heads).transpose(1, 2)

        values = self.ln_kv(patches)
        keys = values + self.resize @ self.pos_embed
        queries = (self.ln_q(self.query) + self.pos_embed).expand(batch, -1, -1)
        mixed = F.scaled_dot_product_attention(
            split(self.q_proj(queries)), split(self.k_proj(keys)), split(self.v_proj(values))
        )
        return self.out_proj(mixed.transpose(1, 2).reshape(batch, -1, width))  # type: ignore[no-any-return]


class CompressedVit(nn.Module):
    """The vision transformer on each part, and the compressor over the parts that cover the image."""

    def __init__(self, spec: CompressedVitSpec) -> None:
        super().__init__()
        self.spec = spec
        self.vit = Vit(spec.vit)
        self.compressor = Compressor(spec)

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels `[B, 3, P R, R]` to features `[B, P N + Q, C]`."""
        spec, batch, size = self.spec, pixels.shape[0], pixels.shape[-1]
        parts = pixels.view(batch, 3, spec.parts, size, size).transpose(1, 2).reshape(-1, 3, size, size)
        features = self.vit(parts)
        features = features.view(batch, spec.parts, -1, features.shape[-1])
        if spec.split == 1:
            shown = features[:, 0]
            return torch.cat((shown, self.compressor(shown)), dim=1)
        grid, split = spec.vit.grid, spec.split
        tiles = features[:, :-1].view(batch, split, split, grid, grid, -1)
        shown = tiles.transpose(2, 3).reshape(batch, split * grid * split * grid, -1)
        return torch.cat((shown, features[:, -1], self.compressor(shown)), dim=1)
