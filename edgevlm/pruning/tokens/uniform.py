"""Every so many-th token."""

from __future__ import annotations

import torch
from torch import Tensor

from edgevlm.models.taps import Taps
from edgevlm.pruning.tokens.reducer import Options, Selector
from edgevlm.spec import VisionSpec


class Uniform(Selector[Options]):
    """The tokens in the middle of K equal pieces of the sequence."""

    name = "uniform"
    summary = "every (N/K)-th token"
    source = "baseline"
    kept: Tensor

    def __init__(self, vision: VisionSpec, keep: int, options: Options) -> None:
        super().__init__(vision, keep, options)
        pieces = torch.arange(keep)
        self.register_buffer("kept", (2 * pieces + 1) * vision.image_tokens // (2 * keep))

    def select(self, x: Tensor, taps: Taps) -> Tensor:  # noqa: ARG002
        """Indexes `[B, K]`."""
        return self.kept.expand(x.shape[0], -1)
