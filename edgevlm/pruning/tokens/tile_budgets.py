"""How many tokens each tile of an image keeps, and which: for graphs that see all tiles of an image at once.

In: where tiles lie on the image, weights of tiles, scores of tokens. Out: `T K` tokens, packed in the order of tiles
and, in a tile, of places; and the place of each. Written so that T may be open when a graph is traced.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgevlm.pruning.tokens.selecting import ascending, ranked

#: Shares are rounded to so much of a token, so that rounding errors do not decide between equal remainders.
_STEPS = 1024
#: Weight of a tile that has none: it gets tokens when no other tile can take more.
_LEAST = 1e-6


class Tiles:
    """Where the tiles of one image, and their tokens, lie on it.

    Attributes:
        whole: bool `[T]`, the view of the whole image.
        rows, columns: float `[T, S]`, the centres of a tile's tokens, as shares of the image's height and width.
        shown: bool `[T, N]`, tokens that show some of the image.
    """

    def __init__(self, boxes: Tensor, side: int, *, whole_first: bool) -> None:
        """Take tiles of S by S tokens at top, left, bottom, right `[T, 4]` (`edgevlm.tile_tokens.tile_boxes`)."""
        self._side, self._first = side, whole_first
        numbers = torch.arange(boxes.shape[0])
        self.whole = numbers == (0 if whole_first else boxes.shape[0] - 1)
        self._centres = (torch.arange(side) + 0.5) / side
        self._top, self._left, self._bottom, self._right = (boxes[:, edge, None] for edge in range(4))
        self.rows = self._top + (self._bottom - self._top) * self._centres
        self.columns = self._left + (self._right - self._left) * self._centres
        down, across = (self.rows > 0) & (self.rows < 1), (self.columns > 0) & (self.columns < 1)
        self.shown = (down[:, :, None] & across[:, None]).flatten(1)

    def of_whole(self, values: Tensor) -> Tensor:
        """The row `[1, ...]` of the view of the whole image."""
        return values[:1] if self._first else values[-1:]

    def sums(self, values: Tensor) -> Tensor:
        """Of values of the whole image's tokens `[1, N]` the sum over those that lie in each other tile `[T]`."""
        down = (self._top <= self._centres) & (self._centres < self._bottom)
        across = (self._left <= self._centres) & (self._centres < self._right)
        grid = values.reshape(1, self._side, self._side) * down[:, :, None] * across[:, None]
        return torch.where(self.whole, 0.0, grid.sum(dim=(1, 2)))

    def spread(self, values: Tensor) -> Tensor:
        """Values of the whole image's tokens `[1, N]` at the tokens of all tiles `[T, N]`, bilinear as torch's."""
        grid = values.reshape(1, self._side, self._side)
        return (self._between(self.rows) @ grid @ self._between(self.columns).transpose(1, 2)).flatten(1)

    def _between(self, places: Tensor) -> Tensor:
        """Shares `[T, S]` of a side as weights `[T, S, S]` of the tokens around them."""
        at = (places * self._side - 0.5).clamp(0, self._side - 1)
        return (1 - (at[..., None] - torch.arange(self._side)).abs()).clamp(min=0)


def budgets(weights: Tensor, room: Tensor, keep: int) -> Tensor:
    """How many tokens each tile keeps, int64 `[T]`: `keep * T` in all, or all that there are, shared out by weight.

    A tile that is full leaves the rest to the others, by their weights. What is left of whole numbers goes to the
    largest remainders, of equal ones to the first tile.

    Args:
        weights: `[T]`.
        room: the most that each tile can keep `[T]`.
        keep: tokens of a tile on average.
    """
    weights, room = weights.clamp(min=_LEAST), room.float()
    total = torch.minimum(torch.ones_like(weights).sum() * keep, room.sum())
    # Filled to the level at which a tile is full, would all tiles together hold too many?
    levels = room / weights
    filled = torch.minimum(levels[:, None] * weights, room).sum(dim=1)
    full = filled <= total
    rest, others = total - (room * full).sum(), (weights * ~full).sum()
    shares = torch.minimum(torch.where(full, room, weights * (rest / others.clamp(min=_LEAST))), room)
    shares = torch.floor(shares * _STEPS + 0.5) / _STEPS
    counts = torch.floor(shares)
    remainders = torch.where(counts < room, shares - counts, -1.0)
    numbers = torch.arange(weights.shape[0])
    first = (remainders == remainders[:, None]) & (numbers < numbers[:, None])
    before = ((remainders > remainders[:, None]) | first).sum(dim=1)
    return (counts + (before < total - counts.sum())).long()


def packed(features: Tensor, scores: Tensor, counts: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """Of each tile's tokens `[T, N, C]` those with the highest scores `[T, N]`, `counts` `[T]` of them.

    Returns:
        Tokens `[T, keep, C]`, packed, and places, int64 `[T * keep]`: tile times N plus which; -1 behind the last.
    """
    _, tokens, channels = features.shape
    taken = torch.where(torch.arange(tokens) < counts[:, None], ranked(scores), tokens)
    kept, ends = ascending(taken).flatten(), counts.cumsum(dim=0)
    row = torch.arange(features.shape[0] * keep)
    tile = (ends[:-1] <= row[:, None]).sum(dim=1)
    index = (row - (ends - counts)[tile]).clamp(max=tokens - 1)
    held = row < ends[-1:]
    place = torch.where(held, tile * tokens + kept[tile * tokens + index], 0)
    rows = features.reshape(-1, channels)[place].reshape(-1, keep, channels)
    return rows, torch.where(held, place, -1)
