"""HiRED (arXiv 2408.10945): the tokens that the class token looks at, more of them in tiles that show more."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from edgevlm.models.taps import Taps
from edgevlm.pruning.tokens.attention_scores import attention_layers, class_attention, per_token
from edgevlm.pruning.tokens.reducer import Options, Ranking
from edgevlm.pruning.tokens.selecting import one_hot, ranked
from edgevlm.pruning.tokens.tile_budgets import Tiles
from edgevlm.spec import VisionSpec


class HiRedOptions(Options):
    """Options of `hired`."""

    #: The share of an image's tokens that the view of the whole gets, where there are other tiles.
    alpha: float = Field(default=0.5, gt=0, lt=1)


class HiRed(Ranking[HiRedOptions]):
    """s = sum over heads of the class token's attention in the last layer; the highest of each tile.

    The view of the whole image gets `alpha` of the tokens. The other tiles share the rest by how many of that view's
    N (1 - alpha) tokens with the highest such sum in the first layer lie in them. Of one square it is FasterVLM's
    choice.
    """

    name = "hired"
    summary = "highest class-token attention, shared out among tiles by that of the whole image"
    source = "HiRED (arXiv 2408.10945)"
    uses_cls = uses_attention = shares_tiles = True
    Options = HiRedOptions

    def __init__(self, vision: VisionSpec, keep: int, options: HiRedOptions) -> None:
        super().__init__(vision, keep, options)
        self.layers = (-attention_layers(vision), -1)

    def scores(self, x: Tensor, taps: Taps) -> Tensor:  # noqa: ARG002
        """Scores `[B, N]`."""
        return self._sums(taps, -1)

    def weights(self, taps: Taps, tiles: Tiles) -> Tensor:
        """Weights `[T]`."""
        seen = tiles.of_whole(self._sums(taps, self.layers[0]))
        tokens, alpha = seen.shape[1], self.options.alpha
        marked = one_hot(ranked(seen)[:, : max(int(tokens * (1 - alpha)), 1)], tokens).sum(dim=1)
        content = tiles.sums(marked)
        return torch.where(tiles.whole, alpha, (1 - alpha) * content / content.sum().clamp(min=1))

    def _sums(self, taps: Taps, layer: int) -> Tensor:
        return per_token(class_attention(taps.found[layer]).sum(dim=1), self.vision)
