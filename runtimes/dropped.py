"""Caches of decoders that drop image tokens on the way: where images begin, and how many places each part has taken.

The layers behind a stage of `DecoderSpec.token_drop` see fewer tokens, so that their caches are shorter. An engine's
`position` counts the places of the first layers; of an image, every later part lacks a fixed number. Which tokens go on
depends on the whole prefill that an image came with, so a cache can be cut in front of that image, or behind that
prefill, not between.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import InputError
from edgevlm.runtimes.base import Segment
from edgevlm.spec import TokenDropSpec

Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class _Prefill:
    """One with images: places of the first image and of its end, and how many images."""

    begin: int
    end: int
    images: int


class DroppedPlaces:
    """What the caches of one decoder hold."""

    def __init__(self, drop: TokenDropSpec | None) -> None:
        """Begin with empty caches; without a `drop` there is one part."""
        self._drop = drop
        self._prefills: list[_Prefill] = []

    def image_starts(self, segments: list[Segment]) -> Int64:
        """Where, among the positions of `segments`, images begin: `[M]`.

        Raises:
            InputError: embeddings are not those of one image.
        """
        starts, place = [], 0
        for segment in segments:
            if self._drop is not None and segment.ndim > 1:
                if len(segment) != self._drop.image_tokens:
                    raise InputError(
                        f"{len(segment)} embeddings in a row are no image of {self._drop.image_tokens} tokens",
                        "prompt",
                        "give the embeddings of each image as a segment of its own",
                    )
                starts.append(place)
            place += len(segment)
        return np.array(starts, np.int64)

    def taken(self, position: int, images: int = 0) -> list[int]:
        """Places taken in the cache of each part when `position` are in the first.

        Args:
            position: `images` more images included.
            images: those that are not counted yet.
        """
        if self._drop is None:
            return [position]
        images += sum(prefill.images for prefill in self._prefills)
        gone = (images * (self._drop.image_tokens - stage.keep) for stage in self._drop.stages)
        return [position, *(position - less for less in gone)]

    def part(self, layer: int) -> int:
        """The part that a layer belongs to."""
        return 0 if self._drop is None else self._drop.part(layer)

    def add(self, position: int, length: int, starts: Int64) -> None:
        """Count a prefill of `length` positions that began at `position`."""
        if len(starts):
            self._prefills.append(_Prefill(position + int(starts[0]), position + length, len(starts)))

    def cut(self, keep: int) -> None:
        """Forget all positions from `keep` on.

        Raises:
            ValueError: an image would stay without the prompt that it came with.
        """
        if any(prefill.begin < keep < prefill.end for prefill in self._prefills):
            raise ValueError(f"cannot keep {keep} positions: that would part an image from its prompt")
        self._prefills = [prefill for prefill in self._prefills if prefill.end <= keep]
