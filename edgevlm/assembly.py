"""What an image becomes in a prompt: which embeddings of which tile, and the text between them.

In: a prepared image and the encoder's features of its tiles `[T, N, H]`. Out: segments of token ids and embeddings, in
order, that take the place of the image's marker. Their number of positions is known before the encoder has run.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import BundleError
from edgevlm.feature_rows import feature_map, pack
from edgevlm.preprocess import PreparedImage
from edgevlm.runtimes.base import Encoded
from edgevlm.spec import FramedLayout, ModelSpec, RowsLayout
from edgevlm.tile_tokens import by_row, by_tile, positions, shares_tiles
from edgevlm.tokenizer import Tokenizer

#: Token ids `int32[L]`, or embeddings `float32[L, H]`; `float32[rows, columns, H]` for an image that keeps its shape.
Piece: TypeAlias = "NDArray[np.int32] | NDArray[np.float32]"


class ImageAssembler:
    """Puts the features of one model's images together."""

    def __init__(
        self, spec: ModelSpec, tokenizer: Tokenizer | None, newline: NDArray[np.float32] | None = None
    ) -> None:
        """Prepare for one model.

        Args:
            spec: the model's.
            tokenizer: of the text between tiles; None where there is none.
            newline: the embedding `[H]` that ends a row of features, for models that have one.

        Raises:
            BundleError: the model needs a newline, and features in a square; there is none, or they are not.
        """
        # Of what leaves the vision graph of a model with a fusion, only this much stands in the prompt.
        self._tokens = spec.vision.image_tokens if spec.fusion is None else spec.fusion.image_tokens
        self._layout = spec.prompt.image_layout
        self._spec, self._shared = spec, shares_tiles(spec)
        self._stride = spec.vision.stride if spec.preprocess.patches is not None else 0
        self._tokenizer = tokenizer
        self._newline = newline
        if isinstance(self._layout, RowsLayout):
            if newline is None:
                raise BundleError("the bundle has no image newline", spec.name, "export it again")
            if not self._shared and math.isqrt(self._tokens) ** 2 != self._tokens:
                raise BundleError(f"{self._tokens} features of a tile are not a square", spec.name, "export it again")

    def positions(self, image: PreparedImage) -> int:
        """Positions that the image takes in the context."""
        if self._shared:
            texts = self._texts(image, self._layout) if isinstance(self._layout, FramedLayout) else []
            return positions(image, self._spec) + sum(map(len, texts))
        if isinstance(self._layout, RowsLayout):
            if len(image.tiles) == 1:
                return self._tokens + 1
            side = math.isqrt(self._tokens)
            return self._tokens + feature_map(image, side, self._layout.max_tiles).positions
        if self._stride:
            return math.prod(self._grid(image))
        embeddings = len(image.tiles) * self._tokens
        if isinstance(self._layout, FramedLayout):
            return embeddings + sum(map(len, self._texts(image, self._layout)))
        return embeddings

    def pieces(
        self, features: NDArray[np.float32], image: PreparedImage, places: NDArray[np.int64] | None = None
    ) -> list[Piece]:
        """Segments of the image.

        Args:
            features: `[T, N, H]`, one row of N embeddings a tile.
            image: the image they were computed from.
            places: of embeddings that are shared out among tiles (`Encoded`).
        """
        encoded, side = Encoded(features, places), self._spec.vision.grid_side
        if isinstance(self._layout, RowsLayout):
            assert self._newline is not None
            if self._shared:
                return [by_row(encoded, image, self._newline, side, self._layout.max_tiles)]
            return [pack(features, image, self._newline, self._layout.max_tiles)]
        tiles = by_tile(encoded, len(image.tiles), side) if self._shared else list(features)
        if isinstance(self._layout, FramedLayout):
            *before, end = self._texts(image, self._layout)
            framed = [piece for pair in zip(before, tiles, strict=True) for piece in pair]
            return [piece for piece in [*framed, end] if len(piece)]
        if self._stride:
            return [features.reshape(*self._grid(image), -1)]
        return [tile for tile in tiles if len(tile)]

    def _grid(self, image: PreparedImage) -> tuple[int, int]:
        """Rows and columns of the features of an image that keeps its shape."""
        height, width = image.tiles.shape[1:3]
        return height // self._stride, width // self._stride

    def _texts(self, image: PreparedImage, layout: FramedLayout) -> list[NDArray[np.int32]]:
        """Ids of the text before each tile, then of the text after the last."""
        texts = []
        gap = ""
        if len(image.tiles) > 1:
            for row in range(1, image.rows + 1):
                for column in range(1, image.columns + 1):
                    texts.append(gap + layout.tile_text.replace("{row}", str(row)).replace("{column}", str(column)))
                    gap = ""
                gap = layout.row_end
            gap += layout.tiles_end
        if layout.whole_first:
            texts = [layout.whole_text, *texts, gap + layout.end_text]
        else:
            texts += [gap + layout.whole_text, layout.end_text]
        assert self._tokenizer is not None
        return [np.array(self._tokenizer.encode(text), np.int32) for text in texts]
