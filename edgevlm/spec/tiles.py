"""How an image is cut into tiles, and what the tiles become in the prompt.

`kind` tells the ways of cutting (and the layouts) apart where they are stored. A tile is a square of the encoder's
input size; sizes are in pixels, height before width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias


@dataclass(frozen=True)
class AnyresTiles:
    """The whole image, stretched, then the tiles of the best of some canvases (LLaVA-NeXT, LLaVA-OneVision).

    The image keeps its shape on the canvas, with black around it.

    Attributes:
        pinpoints: heights and widths of the canvases, multiples of the tile.
        cut_several: of several images in one question each is cut as well (LLaVA-NeXT); otherwise each is one tile,
            padded to a square, as `PreprocessSpec` says.
    """

    pinpoints: tuple[tuple[int, int], ...]
    kind: Literal["anyres"] = "anyres"
    cut_several: bool = False


@dataclass(frozen=True)
class SplitTiles:
    """The tiles of the image, then the whole image (Idefics3, arXiv 2408.12637; SmolVLM, arXiv 2504.05299).

    The image is resized until its longest edge is `longest_edge`, then until both edges are multiples of the tile. An
    image that is one tile then, or any image without `split`, is seen whole alone.
    """

    longest_edge: int
    split: bool = True
    kind: Literal["split"] = "split"


@dataclass(frozen=True)
class AspectTiles:
    """The tiles of the grid that is shaped most like the image, then the whole image (InternVL, arXiv 2404.16821).

    The image is stretched over the grid. A grid of one tile is not followed by the whole image.
    """

    min_tiles: int
    max_tiles: int
    kind: Literal["aspect"] = "aspect"


@dataclass(frozen=True)
class FittedTiles:
    """The whole image, then the tiles of the image (nanoVLM).

    The image is stretched over the least grid whose longer side is at least the image's and at most `longest_edge`; a
    grid of one tile is not followed by its tile. The view of the whole is made of the stretched image, bilinearly.

    Attributes:
        longest_edge: a multiple of the tile.
        enlarge: the longer side is always `longest_edge`.
    """

    longest_edge: int
    enlarge: bool = False
    kind: Literal["fitted"] = "fitted"


TileSpec: TypeAlias = AnyresTiles | SplitTiles | AspectTiles | FittedTiles


@dataclass(frozen=True)
class StackedTiles:
    """The parts of the image row by row, then the whole image, each made square and laid one below the other.

    The encoder takes them together, as one tall tile (LLaVA-Mini, arXiv 2501.03895, high resolution).

    Attributes:
        split: parts along one side of the image.
    """

    split: int
    kind: Literal["stacked"] = "stacked"


@dataclass(frozen=True)
class RowsLayout:
    """The whole image, then the map of all tiles row by row, without padding, each row ended by a learned embedding.

    A map larger than `max_tiles` tiles is made smaller, bilinearly (LLaVA-OneVision, arXiv 2408.03326, `anyres_max_9`);
    LLaVA-NeXT shrinks none.
    """

    max_tiles: int
    kind: Literal["rows"] = "rows"


@dataclass(frozen=True)
class FramedLayout:
    """Text before each tile, after each row of tiles, and around the whole image (Idefics3, SmolVLM, nanoVLM).

    Attributes:
        tile_text: before a tile; `{row}` and `{column}` stand for its place, from 1.
        row_end: after the last tile of a row.
        tiles_end: after all tiles.
        whole_text: before the whole image.
        end_text: after everything.
        whole_first: the whole image stands before the tiles.
    """

    tile_text: str
    row_end: str
    tiles_end: str
    whole_text: str
    end_text: str
    kind: Literal["framed"] = "framed"
    whole_first: bool = False


ImageLayout: TypeAlias = RowsLayout | FramedLayout
