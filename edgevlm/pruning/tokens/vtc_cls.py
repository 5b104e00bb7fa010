"""VTC-CLS (arXiv 2412.05819): the tokens that the class token looks at, in several layers."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from edgevlm.models.taps import Taps
from edgevlm.pruning.tokens.attention_scores import attention_layers, class_attention, per_token
from edgevlm.pruning.tokens.reducer import Options, Ranking
from edgevlm.spec import ModelSpec, VisionSpec


class VtcClsOptions(Options):
    """Options of `vtc-cls`."""

    #: The first layer that counts, from 0; None is the middle one. The last that counts is the last that runs.
    start: int | None = Field(default=None, ge=0)


class VtcCls(Ranking[VtcClsOptions]):
    """s = sum over layers of the mean over heads of the class token's attention; the K highest."""

    name = "vtc-cls"
    summary = "highest class-token attention, summed over layers"
    source = "VTC-CLS (arXiv 2412.05819)"
    uses_cls = uses_attention = True
    Options = VtcClsOptions

    def __init__(self, vision: VisionSpec, keep: int, options: VtcClsOptions) -> None:
        super().__init__(vision, keep, options)
        count = attention_layers(vision)
        start = count // 2 if options.start is None else options.start
        self.layers = tuple(range(start - count, 0))

    @classmethod
    def refuses(cls, spec: ModelSpec, keep: int, options: VtcClsOptions) -> str | None:  # noqa: ARG003
        """A start behind the last layer."""
        count = attention_layers(spec.vision)
        if options.start is not None and options.start >= count:
            return f"vtc-cls cannot start at layer {options.start} of {count}"
        return None

    def scores(self, x: Tensor, taps: Taps) -> Tensor:  # noqa: ARG002
        """Scores `[B, N]`."""
        means = [class_attention(taps.found[layer]).mean(dim=1) for layer in self.layers]
        return per_token(torch.stack(means).sum(dim=0), self.vision)
