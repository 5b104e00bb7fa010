"""Calibration data: the images and prompts that a pass may look at.

Nothing is loaded until a pass asks, and every pass reads the same samples in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Sample:
    """One question about one image.

    Attributes:
        image: uint8 `[H, W, 3]`, RGB.
        prompt: what a user asks.
    """

    image: NDArray[np.uint8]
    prompt: str


@dataclass(frozen=True)
class Calibration:
    """Samples for passes that need them.

    Attributes:
        samples: opens them anew, from the first.
        count: how many there are.
    """

    samples: Callable[[], Iterator[Sample]]
    count: int
