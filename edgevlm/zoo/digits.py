"""The handwritten digits that scenes are composed from, and their fixed split.

In: `data/digits.npz` (1797 grey images of 8x8 pixels, ink 0 to 16, from the UCI set "Optical Recognition of
Handwritten Digits" as scikit-learn distributes it; licence in `data/DIGITS-LICENSE.txt`). Out: for each split the
indices of the digit images that may be drawn, per digit class. The three splits share no image.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgevlm.errors import InputError

SPLITS = ("train", "calibration", "test")
_SPLIT_SHARES = (0.70, 0.10, 0.20)
_DATA = Path(__file__).parent / "data" / "digits.npz"


@dataclass(frozen=True)
class Digits:
    """All digit images: `images` uint8 [1797, 8, 8], 0 (paper) to 16 (ink); `labels` uint8 [1797]."""

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.uint8]


@lru_cache(maxsize=1)
def load_digits() -> Digits:
    """Read the shipped npz once a process (no pickle)."""
    try:
        with np.load(_DATA, allow_pickle=False) as data:
            return Digits(images=data["images"], labels=data["labels"])
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            what=f"the digit images cannot be read: {error}", where=str(_DATA), hint="reinstall edgevlm"
        ) from error


@lru_cache(maxsize=len(SPLITS))
def split_indices(split: str) -> tuple[tuple[int, ...], ...]:
    """Indices of the digit images of `split`, one tuple for each class 0 to 9.

    Every class is cut at the same shares, after one fixed shuffle that spreads the writers (the file lists them in
    order) over the splits.
    """
    if split not in SPLITS:
        raise InputError(what=f"unknown split {split!r}", where="scenes", hint=f"use one of {', '.join(SPLITS)}")
    labels = load_digits().labels
    rng = np.random.default_rng(1797)
    classes = []
    for digit in range(10):
        indices = rng.permutation(np.flatnonzero(labels == digit))
        bounds = np.round(np.cumsum((0.0, *_SPLIT_SHARES)) * len(indices)).astype(int)
        position = SPLITS.index(split)
        classes.append(tuple(int(i) for i in indices[bounds[position] : bounds[position + 1]]))
    return tuple(classes)
