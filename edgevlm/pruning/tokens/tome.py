"""ToMe (arXiv 2210.09461), at the end of the encoder: tokens merged in pairs, each mean weighted by what is in it."""

from __future__ import annotations

import torch
from torch import Tensor

from edgevlm.models.taps import Taps
from edgevlm.pruning.tokens.bipartite import merge_step
from edgevlm.pruning.tokens.reducer import Options, Reducer


class ToMe(Reducer[Options]):
    """Bipartite merging, at most half of the tokens a step, until K are left. The order of the tokens is not kept."""

    name = "tome"
    summary = "likest pairs merged, means weighted by the patches in them"
    source = "ToMe (arXiv 2210.09461)"
    before_projector = True

    def forward(self, x: Tensor, taps: Taps) -> Tensor:  # noqa: ARG002
        """Features `[B, N, C]` to `[B, K, C]`."""
        weights = torch.ones_like(x[..., :1])
        while x.shape[1] > self.keep:
            x, weights = merge_step(x, weights, min(x.shape[1] - self.keep, x.shape[1] // 2))
        return x
