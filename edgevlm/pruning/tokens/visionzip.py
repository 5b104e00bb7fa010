"""VisionZip (arXiv 2412.04467): dominant tokens as they are, and the others merged into a few contextual ones."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from edgevlm.models.taps import Taps
from edgevlm.pruning.tokens.attention_scores import (
    class_attention,
    has_class_token,
    mean_keys,
    per_token,
    received_attention,
)
from edgevlm.pruning.tokens.reducer import Options, Reducer
from edgevlm.pruning.tokens.selecting import one_hot, split, take, unit
from edgevlm.spec import ModelSpec, VisionSpec


class VisionZipOptions(Options):
    """Options of `visionzip`."""

    #: Of the K tokens so many are merged ones; None is 10 of 64, the published share.
    contextual: int | None = Field(default=None, ge=1)

    def merged(self, keep: int) -> int:
        """Contextual tokens among `keep`."""
        return max(1, round(keep * 10 / 64)) if self.contextual is None else self.contextual


class VisionZip(Reducer[VisionZipOptions]):
    """Dominant: the class token and the patches it looks at most (sum over heads, last layer), in their order.

    Contextual, behind them: of the other patches every so many-th is a target; each patch that is none goes to the
    target with the most similar key (mean over heads), which gets the mean of what came to it added. An encoder without
    a class token has no such token to keep, and the attention received decides.
    """

    name = "visionzip"
    summary = "class token and highest class-token attention, the others merged by key"
    source = "VisionZip (arXiv 2412.04467)"
    uses_attention = True
    before_projector = True
    layers = (-1,)
    Options = VisionZipOptions

    def __init__(self, vision: VisionSpec, keep: int, options: VisionZipOptions) -> None:
        super().__init__(vision, keep, options)
        # Joined patches are wider than a class token.
        self.keeps_class = has_class_token(vision) and vision.pixel_shuffle == 1
        self.merged = options.merged(keep)
        self.dominant = keep - self.merged - self.keeps_class

    @classmethod
    def refuses(cls, spec: ModelSpec, keep: int, options: VisionZipOptions) -> str | None:
        """Too few tokens for both kinds."""
        least = options.merged(keep) + has_class_token(spec.vision) + 1
        return None if keep >= least else f"visionzip needs {least} tokens at least for its kinds, not {keep}"

    def forward(self, x: Tensor, taps: Taps) -> Tensor:
        """Features `[B, N, C]` to `[B, K, C]`."""
        layer, vision = taps.found[-1], self.vision
        seen = class_attention(layer).sum(dim=1) if has_class_token(vision) else received_attention(layer, vision)
        kept, rest = split(per_token(seen, vision), self.dominant)
        keys = unit(take(per_token(mean_keys(layer, vision), vision), rest))
        parts = [take(x, kept), self._merge(take(x, rest), keys)]
        if self.keeps_class:
            assert taps.class_feature is not None
            parts.insert(0, taps.class_feature)
        return torch.cat(parts, dim=1)

    def _merge(self, rest: Tensor, keys: Tensor) -> Tensor:
        """Tokens `[B, R, C]` with their keys, of length 1, to contextual tokens."""
        count, step = rest.shape[1], rest.shape[1] // self.merged
        targets = [index * step for index in range(self.merged)]
        others = [index for index in range(count) if index not in targets]
        if not others:
            return rest
        nearest = (keys[:, others] @ keys[:, targets].transpose(1, 2)).argmax(dim=-1)
        belongs = one_hot(nearest, self.merged).transpose(1, 2)
        means = belongs @ rest[:, others] / belongs.sum(dim=-1, keepdim=True).clamp(min=1)
        return rest[:, targets] + means
