"""AIM's merging in front of the decoder (arXiv 2412.03248): tokens merged in pairs, to plain means."""

from __future__ import annotations

import torch
from torch import Tensor

from edgevlm.models.taps import Taps
from edgevlm.pruning.tokens.bipartite import merge_step
from edgevlm.pruning.tokens.reducer import Options, Reducer


class AimMerge(Reducer[Options]):
    """Bipartite merging of what the decoder would see, at most half of the tokens a step (50%, then 25%, ...).

    A token counts as one in the next step, whatever was merged into it. The order of the tokens is not kept.
    """

    name = "aim-merge"
    summary = "likest pairs of embeddings merged to plain means"
    source = "AIM (arXiv 2412.03248)"

    def forward(self, x: Tensor, taps: Taps) -> Tensor:  # noqa: ARG002
        """Embeddings `[B, N, C]` to `[B, K, C]`."""
        while x.shape[1] > self.keep:
            x, _ = merge_step(x, torch.ones_like(x[..., :1]), min(x.shape[1] - self.keep, x.shape[1] // 2))
        return x
