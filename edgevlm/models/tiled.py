"""A vision side that sees all tiles of an image at once, since their tokens are shared out among them.

In: pixels of one image's tiles `[T, 3, R, R]`, and where these lie on it `[T, 4]` (`edgevlm.tile_tokens.tile_boxes`).
Out: embeddings `[T, K, H]`, and their places, int64 `[T * K]`, as in `edgevlm.runtimes.base.Encoded`.
"""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from edgevlm.models.projector import pixel_shuffle
from edgevlm.models.taps import Taps, TokenReducer
from edgevlm.models.vlm import VisionModel


class TileReducer(TokenReducer):
    """A reducer that can leave each tile of an image a number of tokens of its own."""

    @abstractmethod
    def share(self, x: Tensor, taps: Taps, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings of all tiles of an image `[T, N, C]` to `[T, K, C]`, packed, and their places `[T * K]`."""


class TiledVisionModel(VisionModel):
    """Encoder, reducer and projector, or encoder, projector and reducer."""

    def forward(self, pixels: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Pixels `[T, 3, R, R]` and boxes `[T, 4]` to embeddings and their places."""
        reducer = self.reducer
        assert isinstance(reducer, TileReducer)
        taps = Taps(reducer.layers)
        features = self.encoder(pixels, taps) if taps.layers else self.encoder(pixels)
        if self.shuffle > 1:
            features = pixel_shuffle(features, self.shuffle)
        if not reducer.before_projector:
            return reducer.share(self.projector(features), taps, boxes)
        rows, places = reducer.share(features, taps, boxes)
        return self.projector(rows), places
