"""Rotary positions on three axes (M-RoPE, Qwen2-VL, arXiv 2409.12191), for decoders with `rope_sections`.

In: the segments of a prompt, in which an image is a grid of embeddings. Out: for each a position in time, in height and
in width. Text counts on all three alike; an image stands still in time, its rows and columns count from where it
begins, and what follows goes on behind the longer side. So a rotary position is not a place in the key/value cache.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgevlm.runtimes.base import Segment

Int64 = NDArray[np.int64]


def flat(segments: list[Segment]) -> list[Segment]:
    """The segments with each image's grid `[rows, columns, H]` as rows `[rows * columns, H]`."""
    return [segment.reshape(-1, segment.shape[-1]) if segment.ndim == 3 else segment for segment in segments]


class RotaryPositions:
    """The positions of what a cache of `limit` places holds; places may be overwritten from anywhere on."""

    def __init__(self, limit: int) -> None:
        #: Rotary position of what comes to each place of the cache, were it text.
        self._starts = np.arange(limit + 1, dtype=np.int64)

    def at(self, place: int) -> int:
        """The position of a token in this place, or that an image in it begins at."""
        return int(self._starts[place])

    def advance(self, place: int) -> int:
        """The position, on all axes, of a token that goes into the cache at `place`."""
        position = self.at(place)
        self._starts[place + 1] = position + 1
        return position

    def append(self, place: int, segments: list[Segment]) -> Int64:
        """Positions `[3, L]` of segments that go into the cache from `place` on."""
        found = []
        for segment in segments:
            start = self.at(place)
            if segment.ndim == 3:
                rows, columns = segment.shape[:2]
                offsets = np.stack([np.zeros(rows * columns, np.int64), *np.indices((rows, columns)).reshape(2, -1)])
                end = start + max(rows, columns)
                count = rows * columns
                self._starts[place : place + count] = start
            else:
                count = len(segment)
                offsets = np.broadcast_to(np.arange(count), (3, count))
                end = start + count
                self._starts[place : place + count] = start + offsets[0]
            place += count
            self._starts[place] = end
            found.append(start + offsets)
        return np.concatenate(found, axis=1)
