"""Choosing the frames of a video that a model is shown.

In: frames (of any kind) and the times at which they are shown. Out: one frame for each tick of a slower clock, to give
to `Session.generate(..., video=True)`. Reading video files is left to the caller's own library.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from typing import TypeVar

from edgevlm.errors import InputError

Frame = TypeVar("Frame")


def sample(frames: Sequence[Frame], seconds: Sequence[float], fps: float = 1.0) -> list[Frame]:
    """The frames on screen at the first frame's time and then `fps` times a second, up to the last frame's.

    Args:
        frames: in the order of time.
        seconds: when each appears, ascending.
        fps: frames a second to take; a slower video repeats frames.

    Raises:
        InputError: there are no frames, not one time for each, or `fps` is not positive.
    """
    if not frames:
        raise InputError("the video has no frames", "video", "give at least one")
    if len(frames) != len(seconds) or any(b < a for a, b in pairwise(seconds)):
        raise InputError(
            f"{len(frames)} frames with {len(seconds)} times, or not in order", "video", "give each a time"
        )
    if not (math.isfinite(fps) and fps > 0):
        raise InputError(f"{fps} frames a second are out of range", "video", "give a number above 0")
    # A millionth of a tick makes up for rounding in times such as 1 / 30.
    ticks = int((seconds[-1] - seconds[0]) * fps + 1e-6) + 1
    return [frames[bisect_right(seconds, seconds[0] + (tick + 1e-6) / fps) - 1] for tick in range(ticks)]
