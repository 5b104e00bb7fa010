"""Images for timing and for the control: made from a seed, no two alike, the same on every machine.

Timing wants what a camera delivers: JPEG bytes of a smooth, coloured picture, so that decoding and resizing cost what
they cost in an app. The control wants an image that tells nothing.
"""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_COARSE = 12
_JPEG_QUALITY = 90


def photo_like(seed: int, index: int, width: int, height: int) -> bytes:
    """JPEG bytes of image number `index`: a random coarse colour field, enlarged smoothly, with sensor-like noise."""
    rng = np.random.default_rng([seed, index])
    coarse = rng.integers(0, 256, (_COARSE, _COARSE, 3), dtype=np.uint8)
    field = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), dtype=np.int16)
    noise = rng.integers(-6, 7, (height, width, 1), dtype=np.int16)
    image = Image.fromarray(np.clip(field + noise, 0, 255).astype(np.uint8))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return buffer.getvalue()


def grey_noise(seed: int, index: int, height: int, width: int) -> NDArray[np.uint8]:
    """Uniform grey noise, uint8 `[height, width, 3]`."""
    rng = np.random.default_rng([seed, index])
    return np.repeat(rng.integers(0, 256, (height, width, 1), dtype=np.uint8), 3, axis=2)
