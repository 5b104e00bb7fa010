"""From a decoded RGB image to the pixels a vision engine takes.

In: an upright RGB Pillow image and a `PreprocessSpec`. Out: float32 `[T, 3, R, R]`, equal bit for bit to what the slow
(Pillow) image processors of transformers compute: make square tiles, resize with Pillow's filters, scale by 1/255,
normalise. It works in two steps, so that the small tiles of bytes between them can identify the image.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgevlm.errors import InputError
from edgevlm.imageio import MAX_SIDE, ImageInput, load_image
from edgevlm.patches import pack, scale
from edgevlm.spec import AnyresTiles, PreprocessSpec, StackedTiles
from edgevlm.tiling import cut

_RESAMPLE = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
}
_BAND_ROWS = 256


@dataclass(frozen=True)
class PreparedImage:
    """One image as the tiles that the encoder sees.

    Attributes:
        tiles: uint8 `[T, R, R, 3]`; `[1, H, W, 3]` for an image that keeps its shape.
        width, height: of the image that they were cut from, in pixels.
        rows, columns: of the tiles that cover the image; a view of the whole image is not counted.
    """

    tiles: NDArray[np.uint8]
    width: int
    height: int
    rows: int = 1
    columns: int = 1

    @cached_property
    def key(self) -> bytes:
        """A hash that tells images apart."""
        geometry = f"{self.tiles.shape} {self.width} {self.height} {self.rows} {self.columns}".encode()
        return hashlib.blake2b(geometry + np.ascontiguousarray(self.tiles).tobytes(), digest_size=16).digest()


def preprocess(image: ImageInput, spec: PreprocessSpec) -> NDArray[np.float32]:
    """Any image input to pixels `[T, 3, R, R]`.

    Raises:
        InputError: the image cannot be read (see `load_image`), or is too elongated to crop.
    """
    return normalise(prepare(load_image(image), spec).tiles, spec)


def prepare(image: Image.Image, spec: PreprocessSpec, images: int = 1) -> PreparedImage:
    """An RGB image to its tiles.

    Args:
        image: upright.
        spec: how to make squares of it.
        images: how many images the question has; with several, some families look at each as one tile.

    Raises:
        InputError: the image is too elongated to crop, or too small to split.
    """
    if spec.patches is not None:
        pixels = scale(image, spec.patches, _RESAMPLE[spec.resample])
        return PreparedImage(pixels[None], image.width, image.height)
    whole = images > 1 and isinstance(spec.tiles, AnyresTiles) and not spec.tiles.cut_several
    if spec.tiles is None or whole:
        return PreparedImage(fit_square(image, spec)[None], image.width, image.height)
    if isinstance(spec.tiles, StackedTiles):
        return PreparedImage(_stack(image, spec, spec.tiles.split)[None], image.width, image.height)
    tiles = cut(image, spec.tiles, spec.image_size, _RESAMPLE[spec.resample])
    return PreparedImage(tiles.pixels, image.width, image.height, tiles.rows, tiles.columns)


def _stack(image: Image.Image, spec: PreprocessSpec, split: int) -> NDArray[np.uint8]:
    """The parts of the image row by row, then the whole, each made square, one below the other: `[P R, R, 3]`."""
    width, height = image.width // split, image.height // split
    if not (width and height):
        raise InputError(
            f"the image has {image.width} x {image.height} pixels, too few to split", "image", "give a larger one"
        )
    corners = [(column * width, row * height) for row in range(split) for column in range(split)]
    parts = [image.crop((x, y, x + width, y + height)) for x, y in corners]
    return np.concatenate([fit_square(part, spec) for part in (*parts, image)])


def fit_square(image: Image.Image, spec: PreprocessSpec) -> NDArray[np.uint8]:
    """An RGB image to uint8 `[R, R, 3]`: padded, cropped or stretched, and resized.

    Raises:
        InputError: the image is too elongated to crop.
    """
    if spec.fit == "stretch":
        return np.asarray(image.resize((spec.image_size, spec.image_size), _RESAMPLE[spec.resample]))
    return np.asarray(_pad_and_resize(image, spec) if spec.fit == "pad" else _resize_and_crop(image, spec))


def normalise(tiles: NDArray[np.uint8], spec: PreprocessSpec) -> NDArray[np.float32]:
    """uint8 `[T, R, R, 3]` to float32 `[T, 3, R, R]`: `(value / 255 - mean) / std`.

    An image that keeps its shape, `[1, H, W, 3]`, becomes patches `[rows, columns, M, V]` (`patches.pack`).
    """
    count, height, width = tiles.shape[:3]
    pixels = np.empty((count, 3, height, width), dtype=np.float32)
    np.divide(tiles.transpose(0, 3, 1, 2), np.float32(255), out=pixels)
    for channel, (mean, std) in enumerate(zip(spec.mean, spec.std, strict=True)):
        plane = pixels[:, channel]
        if mean != 0:
            plane -= np.float32(mean)
        if std != 1:
            plane /= np.float32(std)
    return pixels if spec.patches is None else pack(pixels[0], spec.patches)


def _pad_and_resize(image: Image.Image, spec: PreprocessSpec) -> Image.Image:
    """Centre the image on a square of the pad colour and resize it, without ever holding that square.

    Pillow resizes rows first, then columns, with bytes in between. Rows are independent, so they are padded and resized
    a band at a time, and the rows that are padding are filled in at the final width.
    """
    size, resample = spec.image_size, _RESAMPLE[spec.resample]
    width, height = image.size
    side = max(width, height)
    if width == height:
        return image.resize((size, size), resample)
    left, top = (side - width) // 2, (side - height) // 2
    narrow = Image.new("RGB", (size, side), spec.pad_colour)
    for start in range(0, height, _BAND_ROWS):
        stop = min(start + _BAND_ROWS, height)
        band = image.crop((0, start, width, stop))
        if width < side:
            padded = Image.new("RGB", (side, stop - start), spec.pad_colour)
            padded.paste(band, (left, 0))
            band = padded
        narrow.paste(band.resize((size, stop - start), resample), (0, top + start))
    return narrow.resize((size, size), resample)


def _resize_and_crop(image: Image.Image, spec: PreprocessSpec) -> Image.Image:
    """Resize the shortest edge to R, then cut out the centre."""
    size = spec.image_size
    short, long = sorted(image.size)
    resized_long = int(size * long / short)
    if resized_long > MAX_SIDE:
        raise InputError(
            f"the image is too elongated: {image.width} x {image.height} pixels", "image", "crop it before"
        )
    width, height = (size, resized_long) if image.width <= image.height else (resized_long, size)
    left, top = (width - size) // 2, (height - size) // 2
    return image.resize((width, height), _RESAMPLE[spec.resample]).crop((left, top, left + size, top + size))
