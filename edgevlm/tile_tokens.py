"""Image tokens that a vision graph shares out among the tiles of an image: what it is told, and what becomes of them.

In: a prepared image, and a vision engine. Out: where each tile lies on the image, which the graph gets beside the
pixels; the embeddings with the place of each (`Encoded`); and these as pieces of a prompt, tile by tile, or row by row
over the map of all tiles. The number of positions follows from the image's size alone.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import EngineError
from edgevlm.feature_rows import FeatureMap, feature_map
from edgevlm.preprocess import PreparedImage, normalise
from edgevlm.runtimes.base import Encoded, Float32, TileEngine, VisionEngine
from edgevlm.spec import ModelSpec, RowsLayout

#: The box `[1, 4]` of a tile that shows the whole image.
WHOLE: Float32 = np.array([[0, 0, 1, 1]], np.float32)


def shares_tiles(spec: ModelSpec) -> bool:
    """Whether the vision graph takes all tiles of an image at once and shares its tokens out among them."""
    return spec.vision.reducer is not None and spec.vision.reducer.shared


def encode_image(engine: VisionEngine, image: PreparedImage, spec: ModelSpec) -> Encoded:
    """The embeddings of an image's tiles, with their places where the graph shares them out.

    Raises:
        EngineError: the engine failed, cannot take all tiles at once, or kept another number of tokens.
    """
    boxes = tile_boxes(image, spec) if shares_tiles(spec) else None
    encoded = encode_pixels(engine, normalise(image.tiles, spec.preprocess), boxes)
    if encoded.places is not None:
        found, meant = int((encoded.places >= 0).sum()), kept_tokens(image, spec)
        if found != meant:
            raise EngineError(
                f"the vision engine kept {found} tokens of an image instead of {meant}",
                "vision",
                EngineError.usual_hint,
            )
    return encoded


def encode_pixels(engine: VisionEngine, pixels: Float32, boxes: Float32 | None) -> Encoded:
    """`encode_image` of pixels `[T, 3, R, R]` and, where the graph shares tokens out, boxes `[T, 4]`."""
    if boxes is None:
        return Encoded(engine.encode(pixels))
    if not isinstance(engine, TileEngine):
        raise EngineError("this engine takes one tile at a time", "vision", "use onnxruntime or openvino")
    return engine.encode_tiles(pixels, boxes)


def tile_boxes(image: PreparedImage, spec: ModelSpec) -> Float32:
    """Where each tile lies on the image: top, left, bottom, right `[T, 4]` as shares of its height and width.

    Tiles may reach over the image's edges, where the canvas is wider; the view of the whole image is 0, 0, 1, 1. On a
    map of which only a part shows the image (`RowsLayout`), that part's edges are the image's.
    """
    count, side = len(image.tiles), spec.vision.grid_side
    boxes = np.repeat(WHOLE, count, axis=0)
    if count == 1:
        return boxes
    rows, columns = image.rows * side, image.columns * side
    part = FeatureMap(0, 0, rows, columns, rows, columns)
    if isinstance(spec.prompt.image_layout, RowsLayout):
        part = feature_map(image, side, spec.prompt.image_layout.max_tiles)
    first = first_crop(spec)
    if not part.height * part.width:
        # Of an image that is a hairline on its canvas the map shows nothing.
        boxes[1:] = -1
        return boxes
    for row in range(image.rows):
        for column in range(image.columns):
            corners = np.array([(row, column), (row + 1, column + 1)]) * side - (part.top, part.left)
            boxes[first + row * image.columns + column] = (corners / (part.height, part.width)).ravel()
    return boxes


def first_crop(spec: ModelSpec) -> int:
    """Of several tiles the first that is no view of the whole image: 1 where that view comes first, else 0."""
    tiles = spec.preprocess.tiles
    return 1 if tiles is not None and tiles.kind in ("anyres", "fitted") else 0


def kept_tokens(image: PreparedImage, spec: ModelSpec) -> int:
    """Tokens that are kept of an image: `keep` a tile, or all that show some of the image where these are fewer."""
    count, layout, side = len(image.tiles) * spec.vision.image_tokens, spec.prompt.image_layout, spec.vision.grid_side
    if not isinstance(layout, RowsLayout) or len(image.tiles) == 1:
        return count
    part = feature_map(image, side, layout.max_tiles)
    return min(count, side**2 + part.height * part.width)


def positions(image: PreparedImage, spec: ModelSpec) -> int:
    """Positions that the image takes: its tokens, and on a map of all tiles the ends of rows."""
    count, layout = kept_tokens(image, spec), spec.prompt.image_layout
    if not isinstance(layout, RowsLayout):
        return count
    tiled = len(image.tiles) > 1
    return count + (feature_map(image, spec.vision.grid_side, layout.max_tiles).height if tiled else 1)


def by_tile(encoded: Encoded, tiles: int, side: int) -> list[Float32]:
    """The embeddings `[n, H]` of each tile, in their order; a tile may have none."""
    rows, places = _kept(encoded)
    ends = np.searchsorted(places, np.arange(1, tiles) * side**2)
    return np.split(rows, ends)


def by_row(encoded: Encoded, image: PreparedImage, newline: Float32, side: int, max_tiles: int) -> Float32:
    """The whole image's tokens, then the map's row by row, each row ended by `newline`, even one without a token.

    The map is not made smaller, which would mix tokens that were not kept.
    """
    rows, places = _kept(encoded)
    if len(image.tiles) == 1:
        return np.concatenate((rows, newline[None]))
    part, whole = feature_map(image, side, max_tiles), int(np.searchsorted(places, side**2))
    tile, index = np.divmod(places[whole:] - side**2, side**2)
    y = tile // image.columns * side + index // side - part.top
    x = tile % image.columns * side + index % side - part.left
    ends = np.arange(part.height) * (part.width + 1) + part.width
    order = np.argsort(np.concatenate((y * (part.width + 1) + x, ends)), kind="stable")
    crops = np.concatenate((rows[whole:], np.broadcast_to(newline, (part.height, newline.size))))
    return np.concatenate((rows[:whole], crops[order]))


def _kept(encoded: Encoded) -> tuple[Float32, NDArray[np.int64]]:
    """Embeddings `[n, H]` that hold a token, and their places."""
    assert encoded.places is not None, "a graph that shares tokens out tells where they are"
    held = encoded.places >= 0
    return encoded.rows.reshape(len(held), -1)[held], encoded.places[held]
