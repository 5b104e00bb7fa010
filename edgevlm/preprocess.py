"""From a decoded RGB image to the pixels a vision engine takes.

In: an upright RGB Pillow image and a `PreprocessSpec`. Out: float32 `[1, 3, R, R]`, equal bit for bit to what the slow
(Pillow) LLaVA and CLIP image processors of transformers compute: pad to a square or crop its centre, resize with
Pillow's filters, scale by 1/255, normalise. It works in two steps, so that the small square of bytes between them can
identify the image.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgevlm.errors import InputError
from edgevlm.imageio import MAX_SIDE, ImageInput, load_image
from edgevlm.spec import PreprocessSpec

_RESAMPLE = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
_BAND_ROWS = 256


def preprocess(image: ImageInput, spec: PreprocessSpec) -> NDArray[np.float32]:
    """Any image input to pixels `[1, 3, R, R]`.

    Raises:
        InputError: the image cannot be read (see `load_image`), or is too elongated to crop.
    """
    return normalise(fit_square(load_image(image), spec), spec)


def fit_square(image: Image.Image, spec: PreprocessSpec) -> NDArray[np.uint8]:
    """An RGB image to uint8 `[R, R, 3]`: padded or cropped, and resized.

    Raises:
        InputError: the image is too elongated to crop.
    """
    square = _pad_and_resize(image, spec) if spec.fit == "pad" else _resize_and_crop(image, spec)
    return np.asarray(square)


def normalise(square: NDArray[np.uint8], spec: PreprocessSpec) -> NDArray[np.float32]:
    """uint8 `[R, R, 3]` to float32 `[1, 3, R, R]`: `(value / 255 - mean) / std`."""
    height, width = square.shape[:2]
    pixels = np.empty((1, 3, height, width), dtype=np.float32)
    np.divide(square.transpose(2, 0, 1), np.float32(255), out=pixels[0])
    for channel, (mean, std) in enumerate(zip(spec.mean, spec.std, strict=True)):
        plane = pixels[0, channel]
        if mean != 0:
            plane -= np.float32(mean)
        if std != 1:
            plane /= np.float32(std)
    return pixels


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
