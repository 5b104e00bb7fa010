"""Images for timing and for the control: made from a seed, no two alike, the same on every machine.

Timing wants what a camera delivers: JPEG bytes of a smooth, coloured picture, so that decoding and resizing cost what
they cost in an app. The control wants an image that tells nothing.
"""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops

_COARSE = 12
_JPEG_QUALITY = 90
_NOISE = 6


def photo_like(seed: int, index: int, width: int, height: int) -> bytes:
    """JPEG bytes of image number `index`: a random coarse colour field, enlarged smoothly, with sensor-like noise.

    One is made between any two timed answers, so it has to be quick: the noise is the same for all, but elsewhere, and
    the field leaves room for it.
    """
    rng = np.random.default_rng([seed, index])
    coarse = rng.integers(0, 256 - 2 * _NOISE, (_COARSE, _COARSE, 3), dtype=np.uint8)
    field = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    noise = ImageChops.offset(_noise(seed, width, height), int(rng.integers(width)), int(rng.integers(height)))
    buffer = io.BytesIO()
    ImageChops.add_modulo(field, noise).save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return buffer.getvalue()


@lru_cache(maxsize=1)
def _noise(seed: int, width: int, height: int) -> Image.Image:
    """Grey values from 0 to twice `_NOISE`, as RGB."""
    values = np.random.default_rng(seed).integers(0, 2 * _NOISE + 1, (height, width, 1), dtype=np.uint8)
    return Image.fromarray(np.repeat(values, 3, axis=2))


def grey_noise(seed: int, index: int, height: int, width: int) -> NDArray[np.uint8]:
    """Uniform grey noise, uint8 `[height, width, 3]`."""
    rng = np.random.default_rng([seed, index])
    return np.repeat(rng.integers(0, 256, (height, width, 1), dtype=np.uint8), 3, axis=2)
