"""Tokens drawn at random when the model is exported, the same for every image."""

from __future__ import annotations

import torch
from torch import Tensor

from edgevlm.models.taps import Taps
from edgevlm.pruning.tokens.reducer import Options, Selector
from edgevlm.spec import VisionSpec


class RandomOptions(Options):
    """Options of `random`."""

    seed: int = 0


class RandomTokens(Selector[RandomOptions]):
    """K places drawn without replacement."""

    name = "random"
    summary = "tokens drawn once, at export"
    source = "baseline"
    Options = RandomOptions
    kept: Tensor

    def __init__(self, vision: VisionSpec, keep: int, options: RandomOptions) -> None:
        super().__init__(vision, keep, options)
        generator = torch.Generator().manual_seed(options.seed)
        self.register_buffer("kept", torch.randperm(vision.image_tokens, generator=generator)[:keep].sort().values)

    def select(self, x: Tensor, taps: Taps) -> Tensor:  # noqa: ARG002
        """Indexes `[B, K]`."""
        return self.kept.expand(x.shape[0], -1)
