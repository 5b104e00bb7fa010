"""Images of any shape as packed patches (Qwen2-VL, arXiv 2409.12191).

In: an RGB image and a `PatchesSpec`. Out: the image scaled to whole patches, and its normalised pixels as patches in
the published order, which is that of the features: squares of `merge_size` by `merge_size` patches row by row, and row
by row the patches in each.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgevlm.errors import InputError
from edgevlm.spec import PatchesSpec

#: The published processors refuse what is longer than this many times its width.
_MAX_ASPECT = 200


def scaled_size(width: int, height: int, spec: PatchesSpec) -> tuple[int, int]:
    """Width and height to resize an image to: whole features, within the bounds, about the same shape.

    Raises:
        InputError: the image is too elongated.
    """
    if max(width, height) > _MAX_ASPECT * min(width, height):
        raise InputError(f"the image is too elongated: {width} x {height} pixels", "image", "crop it before")
    unit = spec.patch_size * spec.merge_size
    # Python's round, which goes to the even number from the middle, is what the published processors use.
    across, down = round(width / unit), round(height / unit)
    if across * down * unit**2 > spec.max_pixels:
        shrink = math.sqrt(width * height / spec.max_pixels)
        across, down = (max(1, math.floor(side / shrink / unit)) for side in (width, height))
    elif across * down * unit**2 < spec.min_pixels:
        grow = math.sqrt(spec.min_pixels / (width * height))
        across, down = (math.ceil(side * grow / unit) for side in (width, height))
    return across * unit, down * unit


def scale(image: Image.Image, spec: PatchesSpec, resample: Image.Resampling) -> NDArray[np.uint8]:
    """An RGB image to uint8 `[H, W, 3]`, both sides whole features.

    Raises:
        InputError: the image is too elongated.
    """
    return np.asarray(image.resize(scaled_size(*image.size, spec), resample))


def pack(pixels: NDArray[np.float32], spec: PatchesSpec) -> NDArray[np.float32]:
    """Pixels `[3, H, W]` to patches `[rows, columns, M, V]`: a grid of features, each with M patches of V values.

    A patch holds its channels one after the other, each `frames` times.
    """
    size, merge = spec.patch_size, spec.merge_size
    rows, columns = (side // (size * merge) for side in pixels.shape[1:])
    split = pixels.reshape(3, rows, merge, size, columns, merge, size).transpose(1, 4, 2, 5, 0, 3, 6)
    still = np.broadcast_to(split[:, :, :, :, :, None], (*split.shape[:5], spec.frames, size, size))
    return still.reshape(rows, columns, merge**2, -1)


def graph_inputs(patches: NDArray[np.float32], spec: PatchesSpec) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """What the vision graph takes: all patches `[P, V]`, and how many there are in time, height and width `[1, 3]`."""
    rows, columns = patches.shape[:2]
    grid = np.array([[1, rows * spec.merge_size, columns * spec.merge_size]], np.int64)
    return patches.reshape(-1, patches.shape[-1]), grid
