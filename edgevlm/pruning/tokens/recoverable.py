"""Recoverable compression (arXiv 2409.01179): tokens by the class token and by the question, the rest merged."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from edgevlm.models.taps import Taps
from edgevlm.pruning.tokens.attention_scores import class_attention
from edgevlm.pruning.tokens.guided import question_similarity, without_text
from edgevlm.pruning.tokens.reducer import Options, Reducer
from edgevlm.pruning.tokens.selecting import ascending, one_hot, products, ranked, split, take
from edgevlm.spec import ModelSpec, VisionSpec

_NEIGHBOURS = 5


class RecoverableOptions(Options):
    """Options of `recoverable`; None is a share of K."""

    #: Tokens recovered by the question; None is a third.
    recovered: int | None = Field(default=None, ge=1)
    #: Tokens that the rest is merged into; None is a tenth.
    merged: int | None = Field(default=None, ge=1)

    def counts(self, keep: int) -> tuple[int, int, int]:
        """Tokens by the class token, by the question, and merged."""
        recovered = max(1, keep // 3) if self.recovered is None else self.recovered
        merged = max(1, keep // 10) if self.merged is None else self.merged
        return keep - recovered - merged, recovered, merged


class Recoverable(Reducer[RecoverableOptions]):
    """Three kinds of token, each of a fixed number; the first two stay in their order, the merged ones are behind them.

    First those with the highest class-token attention (mean over heads, last layer). Of the others those likest to the
    question (cosine in CLIP's shared space) are recovered. Of what is left then, density peaks become the centres of
    clusters: with d the distance of features over sqrt(C), a token's density is exp(-mean of d^2 to its 5 nearest), and
    centres are where density times the distance to the nearest denser token (the farthest token, for the densest) is
    highest. Every other token goes to the nearest centre, and each cluster becomes its mean.
    """

    name = "recoverable"
    summary = "class-token attention, then likeness to the question, the rest clustered"
    source = "Recoverable Compression (arXiv 2409.01179)"
    uses_cls = uses_attention = True
    needs_text = True
    before_projector = True
    layers = (-1,)
    Options = RecoverableOptions

    def __init__(self, vision: VisionSpec, keep: int, options: RecoverableOptions) -> None:
        super().__init__(vision, keep, options)
        self.dominant, self.recovered, self.merged = options.counts(keep)

    @classmethod
    def refuses(cls, spec: ModelSpec, keep: int, options: RecoverableOptions) -> str | None:
        """Models without a text tower, and too few tokens for the three kinds."""
        dominant, recovered, merged = options.counts(keep)
        if dominant < 1:
            return f"of {keep} tokens, {recovered} recovered and {merged} merged ones leave none for the class token"
        return without_text(spec, cls.name)

    def forward(self, x: Tensor, taps: Taps) -> Tensor:
        """Features `[B, N, C]` to `[B, K, C]`."""
        first, others = split(class_attention(taps.found[-1]).mean(dim=1), self.dominant)
        likeness = torch.gather(question_similarity(taps), 1, others)
        found, left = split(likeness, self.recovered)
        kept = ascending(torch.cat((first, torch.gather(others, 1, found)), dim=1))
        rest = take(x, torch.gather(others, 1, left))
        return torch.cat((take(x, kept), self._clustered(rest)), dim=1)

    def _clustered(self, rest: Tensor) -> Tensor:
        """Tokens `[B, R, C]` as the means of `merged` clusters, in the order of their centres."""
        count = rest.shape[1]
        if count <= self.merged:
            return rest
        square = rest.square().sum(dim=-1)
        apart = (square[:, :, None] + square[:, None, :] - 2 * products(rest)).clamp(min=0) / rest.shape[-1]
        # A token is its own nearest neighbour.
        nearest = torch.sort(apart, dim=-1, stable=True).values[:, :, 1 : 1 + min(_NEIGHBOURS, count - 1)]
        density = torch.exp(-nearest.mean(dim=-1))
        places = torch.arange(count)
        ties = (density[:, None, :] == density[:, :, None]) & (places[None, :] < places[:, None])
        denser = (density[:, None, :] > density[:, :, None]) | ties
        farthest = apart.amax(dim=(1, 2), keepdim=True)
        separation = torch.where(denser, apart, farthest).amin(dim=-1)
        centres = ascending(ranked(density * separation.sqrt())[:, : self.merged])
        distances = torch.gather(apart, 2, centres[:, None, :].expand(-1, count, -1))
        # A centre is its own, even where another lies upon it.
        own = one_hot(centres, count).transpose(1, 2)
        belongs = one_hot((distances - own).argmin(dim=-1), self.merged).transpose(1, 2)
        return belongs @ rest / belongs.sum(dim=-1, keepdim=True)
