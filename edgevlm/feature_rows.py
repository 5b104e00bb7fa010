"""Features of tiles as one map of the image, row by row: what LLaVA-NeXT and -OneVision make of them.

In: features of the whole image and of its tiles `[1 + T, N, H]`, and the embedding that ends a row. Out: one sequence
`[L, H]`, whose length follows from the image's size alone. It equals transformers' `pack_image_features`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgevlm.bundle import Bundle
from edgevlm.errors import BundleError
from edgevlm.preprocess import PreparedImage

Float32: TypeAlias = NDArray[np.float32]

#: The role of the artefact that holds the embedding at the end of a row: a float32 vector `[H]` in NumPy's format.
NEWLINE_ROLE: Final = "image_newline"
#: The map shrinks only when it exceeds the budget by this factor along a side.
_TOLERATED = 1.1


@dataclass(frozen=True)
class FeatureMap:
    """The part of the tiles' map that shows the image, and the size that it is brought to; in features.

    Attributes:
        top, left: features of padding before the image.
        height, width: of the part with the image.
        out_height, out_width: after shrinking.
    """

    top: int
    left: int
    height: int
    width: int
    out_height: int
    out_width: int

    @property
    def positions(self) -> int:
        """Positions of the map with the ends of its rows."""
        return self.out_height * (self.out_width + 1)


def feature_map(image: PreparedImage, side: int, max_tiles: int) -> FeatureMap:
    """Where the image lies on the map of its tiles, each of `side` by `side` features."""
    height, width, top, left = image.rows * side, image.columns * side, 0, 0
    if image.width / image.height > width / height:
        top = (height - int(round(image.height * (width / image.width), 7))) // 2
        height -= 2 * top
    else:
        left = (width - int(round(image.width * (height / image.height), 7))) // 2
        width -= 2 * left
    ratio = math.sqrt(height * width / (max_tiles * side**2))
    shrink = ratio if ratio > _TOLERATED else 1.0
    return FeatureMap(top, left, height, width, int(height // shrink), int(width // shrink))


def pack(features: Float32, image: PreparedImage, newline: Float32, max_tiles: int) -> Float32:
    """The whole image's features, then the map's rows, each ended by `newline` `[H]`.

    An image of one tile is its features and one newline.
    """
    if len(features) == 1:
        return np.concatenate((features[0], newline[None]))
    side = math.isqrt(features.shape[1])
    part = feature_map(image, side, max_tiles)
    tiles = features[1:].reshape(image.rows, image.columns, side, side, -1)
    whole_map = tiles.transpose(0, 2, 1, 3, 4).reshape(image.rows * side, image.columns * side, -1)
    shown = whole_map[part.top : part.top + part.height, part.left : part.left + part.width]
    shown = _shrink(_shrink(shown, part.out_height, 0), part.out_width, 1)
    ends = np.broadcast_to(newline, (part.out_height, 1, newline.size))
    rows = np.concatenate((shown, ends), axis=1)
    return np.concatenate((features[0], rows.reshape(part.positions, newline.size)))


def load_newline(bundle: Bundle) -> Float32 | None:
    """The embedding that ends a row, or None where the bundle has none.

    Raises:
        BundleError: it is not a finite float32 vector as wide as the decoder.
    """
    if bundle.find(NEWLINE_ROLE) is None:
        return None
    path, width = bundle.artifact(NEWLINE_ROLE), bundle.spec.decoder.hidden_size
    try:
        # Mapped, an array that claims to be larger than its file is refused before memory is taken.
        stored = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, EOFError, ValueError, SyntaxError) as error:
        raise BundleError("the image newline cannot be read", str(path), "export the bundle again") from error
    if not isinstance(stored, np.ndarray) or stored.shape != (width,) or stored.dtype != np.float32:
        raise BundleError(f"the image newline is not {width} float32 numbers", str(path), "export the bundle again")
    if not np.isfinite(stored).all():
        raise BundleError("the image newline is not finite", str(path), "export the bundle again")
    return np.array(stored)


def _shrink(values: Float32, size: int, axis: int) -> Float32:
    """Bilinear interpolation along one axis, sampled at the centres, without smoothing."""
    length = values.shape[axis]
    if size == length:
        return values
    scale = np.float32(length / size)
    place = np.maximum((np.arange(size, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5), 0)
    low = place.astype(np.intp)
    high = np.minimum(low + 1, length - 1)
    weight = (place - low).astype(np.float32)
    weight = weight[:, None, None] if axis == 0 else weight[None, :, None]
    result: Float32 = values.take(low, axis) * (1 - weight) + values.take(high, axis) * weight
    return result
