"""Cutting an image into square tiles, as the families with more than one view of an image do.

In: an RGB Pillow image, a `TileSpec`, the side R of a tile and a Pillow filter. Out: tiles as uint8 `[T, R, R, 3]` with
the rows and columns of those that cover the image. The bytes equal those of the published (Pillow) image processors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgevlm.errors import BundleError
from edgevlm.spec import AnyresTiles, AspectTiles, FittedTiles, SplitTiles, TileSpec

_MOST_CANVASES = 256
_MOST_TILES = 64
#: Idefics3's processor goes no further either.
_LONGEST_EDGE = 4096


@dataclass(frozen=True)
class Tiles:
    """Tiles `[T, R, R, 3]`, and the grid that covers the image; a view of the whole image is not part of the grid."""

    pixels: NDArray[np.uint8]
    rows: int
    columns: int


def tile_problem(spec: TileSpec, size: int) -> str | None:
    """What is wrong with a way of cutting into tiles of `size` pixels, or None; a file may ask for any number."""
    if isinstance(spec, AnyresTiles):
        if not 0 < len(spec.pinpoints) <= _MOST_CANVASES:
            return f"{len(spec.pinpoints)} canvases"
        for height, width in spec.pinpoints:
            if height <= 0 or width <= 0 or height % size or width % size:
                return f"a canvas of {height} x {width} pixels is not made of tiles of {size}"
            if height * width > _MOST_TILES * size**2:
                return f"a canvas of {height} x {width} pixels has more than {_MOST_TILES} tiles"
    elif isinstance(spec, SplitTiles):
        if not 0 < spec.longest_edge <= _LONGEST_EDGE:
            return f"a longest edge of {spec.longest_edge} pixels"
    elif isinstance(spec, FittedTiles):
        if not 0 < spec.longest_edge <= _LONGEST_EDGE or spec.longest_edge % size:
            return f"a longest edge of {spec.longest_edge} pixels, with tiles of {size}"
    elif not 0 < spec.min_tiles <= spec.max_tiles <= _MOST_TILES:
        return f"{spec.min_tiles} to {spec.max_tiles} tiles"
    return None


def cut(image: Image.Image, spec: TileSpec, size: int, resample: Image.Resampling) -> Tiles:
    """Cut an image into tiles of `size` by `size` pixels.

    Raises:
        BundleError: the bundle asks for tiles that cannot be.
    """
    problem = tile_problem(spec, size)
    if problem is not None:
        raise BundleError(f"images cannot be cut: {problem}", "spec.preprocess.tiles", "export the bundle again")
    if isinstance(spec, AnyresTiles):
        return _anyres(image, spec, size, resample)
    if isinstance(spec, SplitTiles):
        return _split(image, spec, size, resample)
    if isinstance(spec, FittedTiles):
        return _fitted(image, spec, size, resample)
    return _aspect(image, spec, size, resample)


def best_pinpoint(width: int, height: int, pinpoints: tuple[tuple[int, int], ...]) -> tuple[int, int]:
    """The canvas (height, width) on which an image shows most of its pixels, and of those the one wasted least."""

    def rank(canvas: tuple[int, int]) -> tuple[int, int]:
        scale = min(canvas[1] / width, canvas[0] / height)
        shown = min(int(width * scale) * int(height * scale), width * height)
        return shown, shown - canvas[0] * canvas[1]

    return max(pinpoints, key=rank)


def closest_grid(width: int, height: int, spec: AspectTiles, size: int) -> tuple[int, int]:
    """Rows and columns of the grid with the aspect ratio nearest to the image's.

    Of grids with one ratio, a larger one is taken while the image has more than half of its pixels.
    """
    counts = range(1, spec.max_tiles + 1)
    grids = [(c, r) for c in counts for r in counts if spec.min_tiles <= c * r <= spec.max_tiles]
    best, least = (1, 1), math.inf
    for columns, rows in sorted(grids, key=lambda grid: grid[0] * grid[1]):
        difference = abs(width / height - columns / rows)
        larger_fits = width * height > 0.5 * size * size * columns * rows
        if difference < least or (difference == least and larger_fits):
            best, least = (columns, rows), difference
    return best[1], best[0]


def _anyres(image: Image.Image, spec: AnyresTiles, size: int, resample: Image.Resampling) -> Tiles:
    height, width = best_pinpoint(image.width, image.height, spec.pinpoints)
    across, down = width / image.width, height / image.height
    if across < down:
        fitted = (width, min(math.ceil(image.height * across), height))
    else:
        fitted = (min(math.ceil(image.width * down), width), height)
    canvas = Image.new("RGB", (width, height))
    canvas.paste(image.resize(fitted, resample), ((width - fitted[0]) // 2, (height - fitted[1]) // 2))
    grid = _grid(canvas, size)
    return _tiles([image.resize((size, size), resample), *grid], height // size, width // size)


def _split(image: Image.Image, spec: SplitTiles, size: int, resample: Image.Resampling) -> Tiles:
    image = image.resize(_with_longest_edge(image.width, image.height, spec.longest_edge), resample)
    if not spec.split:
        return _tiles([image.resize((size, size), resample)], 1, 1)
    ratio = image.width / image.height
    if image.width >= image.height:
        width = math.ceil(image.width / size) * size
        height = math.ceil(int(width / ratio) / size) * size
    else:
        height = math.ceil(image.height / size) * size
        width = math.ceil(int(height * ratio) / size) * size
    image = image.resize((width, height), resample)
    if width == height == size:
        return _tiles([image], 1, 1)
    return _tiles([*_grid(image, size), image.resize((size, size), resample)], height // size, width // size)


def _with_longest_edge(width: int, height: int, longest: int) -> tuple[int, int]:
    """Width and height of an image resized to that longest edge; the other is even, and at least 1."""
    ratio = width / height
    short = int(longest / ratio) if width >= height else int(longest * ratio)
    short = max(short + short % 2, 1)
    return (longest, short) if width >= height else (short, longest)


def _aspect(image: Image.Image, spec: AspectTiles, size: int, resample: Image.Resampling) -> Tiles:
    rows, columns = closest_grid(image.width, image.height, spec, size)
    grid = _grid(image.resize((columns * size, rows * size), resample), size)
    whole = [image.resize((size, size), resample)] if len(grid) > 1 else []
    return _tiles([*grid, *whole], rows, columns)


def _fitted(image: Image.Image, spec: FittedTiles, size: int, resample: Image.Resampling) -> Tiles:
    longest, shortest = max(image.size), min(image.size)
    target = spec.longest_edge if spec.enlarge else min(spec.longest_edge, math.ceil(longest / size) * size)
    scale = target / longest
    other = max(math.ceil(shortest * scale / size) * size, size)
    canvas = image.resize((target, other) if image.width >= image.height else (other, target), resample)
    if canvas.size == (size, size):
        return _tiles([canvas], 1, 1)
    # The published code makes this view of numbers that are not rounded to bytes; a value may differ by one of 255.
    whole = canvas.resize((size, size), Image.Resampling.BILINEAR)
    return _tiles([whole, *_grid(canvas, size)], canvas.height // size, canvas.width // size)


def _grid(canvas: Image.Image, size: int) -> list[Image.Image]:
    """Tiles of a canvas, row by row."""
    corners = [(x, y) for y in range(0, canvas.height, size) for x in range(0, canvas.width, size)]
    return [canvas.crop((x, y, x + size, y + size)) for x, y in corners]


def _tiles(images: list[Image.Image], rows: int, columns: int) -> Tiles:
    return Tiles(np.stack([np.asarray(image) for image in images]), rows, columns)
