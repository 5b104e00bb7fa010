"""Calibration data: the images and prompts that a pass may look at, and what a model makes of them.

Nothing is loaded until a pass asks, and every pass reads the same samples in the same order. `sources` finds samples,
`activations` runs them through the real model up to the decoder, `layers` walks the decoder layer by layer, and
`statistics` are what passes collect on the way. Memory stays below a ceiling; what does not fit lies on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

#: Bytes of activations and changed weights that are held in memory before the rest goes to disk.
DEFAULT_MEMORY = 4 << 30


@dataclass(frozen=True)
class Sample:
    """One question about one image.

    Attributes:
        image: uint8 `[H, W, 3]`, RGB.
        prompt: what a user asks.
        answer: what is right to say; empty where nobody knows.
    """

    image: NDArray[np.uint8]
    prompt: str
    answer: str = ""


@dataclass(frozen=True)
class Calibration:
    """Samples for passes that need them.

    Attributes:
        samples: opens them anew, from the first.
        count: how many there are.
        source: where they come from, as the user wrote it; passes that need more than `count` look there again.
        skipped: what could not be read, and why.
        memory: bytes that may be held in memory.
    """

    samples: Callable[[], Iterator[Sample]]
    count: int
    source: str = ""
    skipped: tuple[str, ...] = ()
    memory: int = DEFAULT_MEMORY
