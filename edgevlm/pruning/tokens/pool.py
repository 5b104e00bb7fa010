"""Means over a coarser grid."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from edgevlm.models.taps import Taps
from edgevlm.pruning.tokens.reducer import Options, Reducer
from edgevlm.spec import ModelSpec, VisionSpec


class Pool(Reducer[Options]):
    """Adaptive average pooling: of S tokens along an axis, cell i of g spans floor(i S / g) to ceil((i + 1) S / g)."""

    name = "pool"
    summary = "mean over each cell of a g x g grid, K = g²"
    source = "baseline"
    weights: Tensor

    def __init__(self, vision: VisionSpec, keep: int, options: Options) -> None:
        super().__init__(vision, keep, options)
        side, cells = math.isqrt(vision.image_tokens), math.isqrt(keep)
        weights = torch.zeros(1, cells, side)
        for cell in range(cells):
            start, stop = cell * side // cells, -(-(cell + 1) * side // cells)
            weights[0, cell, start:stop] = 1 / (stop - start)
        self.register_buffer("weights", weights)

    @classmethod
    def refuses(cls, spec: ModelSpec, keep: int, options: Options) -> str | None:  # noqa: ARG003
        """It needs squares."""
        for count in (spec.vision.image_tokens, keep):
            if math.isqrt(count) ** 2 != count:
                return f"{count} tokens are not a square"
        return None

    def forward(self, x: Tensor, taps: Taps) -> Tensor:  # noqa: ARG002
        """Embeddings `[B, N, C]` to `[B, K, C]`."""
        cells, side = self.weights.shape[1:]
        rows = self.weights @ x.reshape(-1, side, side * x.shape[-1])
        cells_of_rows = self.weights[:, None] @ rows.reshape(-1, cells, side, x.shape[-1])
        return cells_of_rows.flatten(1, 2)
