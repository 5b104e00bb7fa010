"""GlobalCom2 (arXiv 2501.05179): the view of the whole image tells how much of each tile is kept, and helps choose."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from edgevlm.models.taps import Taps
from edgevlm.pruning.tokens.attention_scores import class_attention, per_token
from edgevlm.pruning.tokens.reducer import Options, Ranking
from edgevlm.pruning.tokens.tile_budgets import Tiles


class GlobalCom2Options(Options):
    """Options of `globalcom2`."""

    #: Of the softmax over tiles. Sums of attention differ by less than 1, so that 10, the published one, moves little.
    temperature: float = Field(default=10.0, gt=0)


class GlobalCom2(Ranking[GlobalCom2Options]):
    """a = mean over heads of the class token's attention in the last layer.

    The view of the whole image keeps the share r of its tokens with the highest a. Another tile keeps the share
    r (1 + softmax(sum / `temperature`) - mean), of the sums of the whole's a over each tile, by a / |a| of its own plus
    a / |a| of the whole's at the same place. Lengths and shares are of tokens that show the image; r is such that there
    are K tokens a tile on average. Of one square it is FasterVLM's choice.
    """

    name = "globalcom2"
    summary = "highest class-token attention, that of the whole image shared out among its tiles"
    source = "GlobalCom2 (arXiv 2501.05179)"
    uses_cls = uses_attention = shares_tiles = True
    layers = (-1,)
    Options = GlobalCom2Options

    def scores(self, x: Tensor, taps: Taps) -> Tensor:  # noqa: ARG002
        """Scores `[B, N]`."""
        return self._seen(taps)

    def scores_among(self, x: Tensor, taps: Taps, tiles: Tiles) -> Tensor:  # noqa: ARG002
        """Scores `[T, N]`."""
        seen = self._seen(taps)
        own, shared = (F.normalize(values * tiles.shown) for values in (seen, tiles.spread(tiles.of_whole(seen))))
        return torch.where(tiles.whole[:, None], seen, own + shared)

    def weights(self, taps: Taps, tiles: Tiles) -> Tensor:
        """Weights `[T]`."""
        sums, others = tiles.sums(tiles.of_whole(self._seen(taps))), ~tiles.whole
        rich = torch.exp((sums - sums.max()) / self.options.temperature) * others
        extra = rich / rich.sum().clamp(min=1e-8) - 1 / others.sum().clamp(min=1)
        return tiles.shown.sum(dim=1) * torch.where(others, 1 + extra, 1.0)

    def _seen(self, taps: Taps) -> Tensor:
        return per_token(class_attention(taps.found[-1]).mean(dim=1), self.vision)
