"""What is measured, as the bench sees it: it answers a question about an image and says how long each stage took.

The bundle's session and the uncompressed torch reference come in through here, so the bench measures both alike.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgevlm.bench.report import Engine, Sample
from edgevlm.errors import EngineError

#: What a model is shown.
Shown: TypeAlias = "bytes | NDArray[np.uint8] | list[NDArray[np.uint8]]"


@dataclass(frozen=True)
class Reply:
    """One answer, its stage times in milliseconds, and its likeliest first tokens with their log-probabilities."""

    text: str
    token_ids: tuple[int, ...]
    preprocess_ms: float
    vision_ms: float
    prefill_ms: float
    first_decode_ms: float
    gaps_ms: tuple[float, ...]
    image_tokens: int
    prompt_tokens: int
    reused_tokens: int
    fusion_ms: float | None = None
    first_tokens: tuple[tuple[int, float], ...] = ()


class Subject(Protocol):
    """An opened model."""

    def answer(self, image: Shown, prompt: str, *, max_tokens: int, to_the_end: bool, reuse: bool) -> Reply:
        """Answer greedily.

        Args:
            image: encoded bytes, uint8 `[H, W, 3]`, or several of these for a question about several.
            prompt: the question.
            max_tokens: at most so many tokens.
            to_the_end: generate exactly `max_tokens`, past any stop token, so that timings compare.
            reuse: allow caches to serve what was seen before.
        """

    def engines(self) -> tuple[Engine, Engine]:
        """The vision and the decoder engine."""


def check(reply: Reply, least: int, most: int) -> Reply:
    """`reply` itself, if it can be true: `least` to `most` tokens, a gap between any two, times that can be.

    Raises:
        EngineError: it cannot.
    """
    stages = (reply.preprocess_ms, reply.vision_ms, reply.fusion_ms or 0, reply.prefill_ms, reply.first_decode_ms)
    times = (*stages, *reply.gaps_ms)
    if not least <= len(reply.token_ids) <= most:
        problem = f"{len(reply.token_ids)} tokens where {least} to {most} were asked for"
    elif len(reply.gaps_ms) != max(0, len(reply.token_ids) - 1):
        problem = f"{len(reply.gaps_ms)} token gaps for {len(reply.token_ids)} tokens"
    elif not all(math.isfinite(time) and time >= 0 for time in times):
        problem = "a stage time that is negative or not finite"
    else:
        return reply
    raise EngineError(f"the session returned {problem}", "bench", "run the bundle with another engine")


def sample(reply: Reply, image: str, prompt: str, wall_ms: float) -> Sample:
    """The reply as one timed sample of a report."""
    return Sample(
        image=image,
        prompt=prompt,
        preprocess_ms=_rounded(reply.preprocess_ms),
        vision_ms=_rounded(reply.vision_ms),
        fusion_ms=None if reply.fusion_ms is None else _rounded(reply.fusion_ms),
        prefill_ms=_rounded(reply.prefill_ms),
        first_decode_ms=_rounded(reply.first_decode_ms),
        gaps_ms=[_rounded(gap) for gap in reply.gaps_ms],
        wall_ms=_rounded(wall_ms),
        image_tokens=reply.image_tokens,
        prompt_tokens=reply.prompt_tokens,
        reused_tokens=reply.reused_tokens,
        output_sha256=hashlib.sha256(np.asarray(reply.token_ids, dtype="<i4").tobytes()).hexdigest(),
    )


def _rounded(milliseconds: float) -> float:
    """To a tenth of a microsecond: below what a clock resolves, and short in JSON."""
    return round(milliseconds, 4)
