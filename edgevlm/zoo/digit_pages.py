"""The accuracy set `digits`: all 1797 real handwritten digits, each alone on an image, to be read.

In: a split and a seed, or the number of a digit's scan. Out: an order to ask in, and images uint8 [512, 512, 3]. The
splits are those that scenes draw their digits from: models of the zoo were trained on scans of `train` (1,258) and may
have been compressed with images that hold scans of `calibration` (180); they have never met those of `test` (359).
`held-out` is both of the latter; `all` is for models that were trained on none.
"""

from __future__ import annotations

import numpy as np

from edgevlm.errors import InputError
from edgevlm.zoo.digits import SPLITS, load_digits, split_indices
from edgevlm.zoo.drawing import Pixels, Plate, Scene, render
from edgevlm.zoo.scenes import IMAGE_SIZE

_PARTS = {"test": ("test",), "calibration": ("calibration",), "held-out": ("calibration", "test"), "all": SPLITS}
PAGE_SPLITS = tuple(_PARTS)
QUESTION = "What number is written?"
_GLYPH = 84.0
_INK = (30, 30, 36)
_STREAM = 1797


def page_order(split: str, seed: int) -> list[int]:
    """Numbers of the scans of `split` in an order that mixes the digits.

    Raises:
        InputError: there is no such split.
    """
    if split not in _PARTS:
        raise InputError(f"unknown split {split!r:.40}", "digits", f"use one of {', '.join(_PARTS)}")
    indices = sorted(i for part in _PARTS[split] for of_class in split_indices(part) for i in of_class)
    return [int(i) for i in np.random.default_rng([_STREAM, seed]).permutation(indices)]


def page(index: int) -> tuple[int, Pixels]:
    """The digit that scan number `index` shows, and the image that holds it alone."""
    digit = int(load_digits().labels[index])
    centre = IMAGE_SIZE / 2
    plate = Plate(str(digit), (index,), (0.0,), centre, centre, _GLYPH, 0.85 * _GLYPH, _INK)
    return digit, render(Scene(IMAGE_SIZE, (), (plate,)), np.random.default_rng([_STREAM, index]))
