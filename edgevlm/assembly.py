"""What an image becomes in a prompt: which embeddings of which tile, and the text between them.

In: a prepared image and the encoder's features of its tiles `[T, N, H]`. Out: segments of token ids and embeddings, in
order, that take the place of the image's marker. Their number of positions is known before the encoder has run.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgevlm.preprocess import PreparedImage
from edgevlm.spec import ModelSpec
from edgevlm.tokenizer import Tokenizer

#: Token ids `int32[L]`, or embeddings `float32[L, H]`.
Piece: TypeAlias = "NDArray[np.int32] | NDArray[np.float32]"


class ImageAssembler:
    """Puts the features of one model's images together."""

    def __init__(self, spec: ModelSpec, tokenizer: Tokenizer) -> None:
        self._spec = spec
        self._tokenizer = tokenizer

    def positions(self, image: PreparedImage) -> int:
        """Positions that the image takes in the context."""
        return len(image.tiles) * self._spec.vision.image_tokens

    def pieces(self, features: NDArray[np.float32], image: PreparedImage) -> list[Piece]:
        """Segments of the image.

        Args:
            features: `[T, N, H]`, one row of N embeddings a tile.
            image: the image they were computed from.
        """
        del image  # one tile is the whole image
        return list(features)
