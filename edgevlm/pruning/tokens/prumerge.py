"""LLaVA-PruMerge (arXiv 2403.15388), with a fixed number of tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from edgevlm.models.taps import QueryKey, Taps
from edgevlm.pruning.tokens.attention_scores import per_token
from edgevlm.pruning.tokens.reducer import Options, Reducer
from edgevlm.pruning.tokens.selecting import ascending, ranked, split, take, unit
from edgevlm.spec import ModelSpec, VisionSpec

#: Tokens that are added to each kept one.
NEIGHBOURS = 32


class PruMergeOptions(Options):
    """Options of `prumerge`."""

    #: PruMerge+: a quarter of the kept tokens by attention, the others spread evenly over what is left.
    plus: bool = False


class PruMerge(Reducer[PruMergeOptions]):
    """K - 1 tokens by the class token's attention, each with its likest others added, and one token of all others.

    Attention is that of one head as wide as the layer: softmax(q . k / sqrt(C)), in the last layer that runs. To a kept
    token its 32 likest others (cosine of their keys) are added, weighted by their attention; the last token is the sum
    of all others, weighted so. How many are kept was left to outliers of the attention; a graph needs a fixed number.
    """

    name = "prumerge"
    summary = "highest class-token attention, the others added to the likest kept one"
    source = "LLaVA-PruMerge (arXiv 2403.15388)"
    uses_cls = uses_attention = True
    before_projector = True
    layers = (-1,)
    Options = PruMergeOptions

    def __init__(self, vision: VisionSpec, keep: int, options: PruMergeOptions) -> None:
        super().__init__(vision, keep, options)
        chosen = keep - 1
        self.by_attention = -(-chosen // 4) if options.plus else chosen
        self.spread = chosen - self.by_attention

    @classmethod
    def refuses(cls, spec: ModelSpec, keep: int, options: PruMergeOptions) -> str | None:  # noqa: ARG003
        """Too few tokens, or none to merge."""
        tokens = spec.vision.image_tokens
        return None if 2 <= keep <= tokens else f"prumerge keeps 2 to {tokens} tokens, not {keep}"

    def forward(self, x: Tensor, taps: Taps) -> Tensor:
        """Features `[B, N, C]` to `[B, K, C]`."""
        attention, keys = _one_wide_head(taps.found[-1])
        attention, keys = per_token(attention, self.vision), unit(per_token(keys, self.vision))
        kept, rest = self._choose(attention)
        weights = torch.gather(attention, 1, rest)[:, None]
        likeness = take(keys, kept) @ take(keys, rest).transpose(1, 2)
        nearest = ranked(likeness)[..., : min(NEIGHBOURS, rest.shape[1])]
        added = torch.zeros_like(likeness).scatter(-1, nearest, 1.0) * weights
        others = take(x, rest)
        return torch.cat((take(x, kept) + added @ others, weights @ others), dim=1)

    def _choose(self, attention: Tensor) -> tuple[Tensor, Tensor]:
        """Indexes of kept tokens and of the others, both ascending."""
        kept, rest = split(attention, self.by_attention)
        if not self.spread:
            return kept, rest
        count = rest.shape[1]
        places = [(2 * index + 1) * count // (2 * self.spread) for index in range(self.spread)]
        left = [index for index in range(count) if index not in places]
        return ascending(torch.cat((kept, rest[:, places]), dim=1)), rest[:, left]


def _one_wide_head(layer: QueryKey) -> tuple[Tensor, Tensor]:
    """The class token's attention to the patches `[B, P]` with all heads joined to one, and their keys `[B, P, C]`."""
    query = layer.query[:, :, :1].transpose(1, 2).flatten(2)
    keys = layer.key.transpose(1, 2).flatten(2)
    scores = query @ keys.transpose(1, 2) * keys.shape[-1] ** -0.5
    return torch.softmax(scores, dim=-1)[:, 0, 1:], keys[:, 1:]
