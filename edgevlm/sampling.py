"""From logits to the next token, and when to stop.

In: logits `float32[V]` and `SamplingOptions`. Out: a token id. The distribution is that of transformers' temperature,
top-k and top-p warpers in this order; the draws are numpy's, so a seed gives the same tokens on every engine that gives
the same logits. `StopStrings` watches the text for stop strings and holds back what may still become one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import EngineError, InputError


@dataclass(frozen=True)
class SamplingOptions:
    """How to choose tokens.

    Attributes:
        temperature: 0 is greedy.
        top_k: keep the k most probable tokens; 0 keeps all.
        top_p: keep the smallest set of tokens whose probability reaches this; 1 keeps all.
        seed: of the random draws; None draws one.

    Raises:
        InputError: a value is out of range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        if not (np.isfinite(self.temperature) and self.temperature >= 0):
            raise InputError(f"temperature {self.temperature} is out of range", "temperature", "give 0 or more")
        if self.top_k < 0:
            raise InputError(f"top_k {self.top_k} is out of range", "top_k", "give 0 (off) or more")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p {self.top_p} is out of range", "top_p", "give a value in (0, 1]")
        if self.seed is not None and self.seed < 0:
            raise InputError(f"seed {self.seed} is out of range", "seed", "give 0 or more")


class Sampler:
    """Chooses tokens; holds the random generator."""

    def __init__(self, options: SamplingOptions) -> None:
        self._options = options
        self._random = np.random.default_rng(options.seed)

    def __call__(self, logits: NDArray[np.float32]) -> int:
        """The next token of logits `[V]`, which stay unchanged.

        Raises:
            EngineError: the logits are not finite.
        """
        best = int(logits.argmax())
        if not np.isfinite(logits[best]):
            raise EngineError("the decoder returned logits that are not finite", "logits", "try another decoder engine")
        if self._options.temperature == 0:
            return best
        ids, probabilities = distribution(logits, self._options)
        index = int(np.searchsorted(np.cumsum(probabilities), self._random.random(), side="right"))
        return int(ids[min(index, len(ids) - 1)])


def distribution(
    logits: NDArray[np.float32], options: SamplingOptions
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The tokens that may be drawn from logits `[V]`, ascending, and their probabilities, which sum to 1.

    Temperature must be positive. Equal logits at the edge of the top k are all kept; of equal ones at the edge of the
    nucleus the higher ids are.
    """
    scaled = logits / np.float32(options.temperature)
    scaled -= scaled.max()
    ids: NDArray[np.int64]
    if 0 < options.top_k < len(scaled):
        smallest_kept = np.partition(scaled, len(scaled) - options.top_k)[len(scaled) - options.top_k]
        ids = np.flatnonzero(scaled >= smallest_kept)
        weights = np.exp(scaled[ids])
    else:
        ids = np.arange(len(scaled))
        weights = np.exp(scaled)
    probabilities = weights.astype(np.float64)
    probabilities /= probabilities.sum()
    if options.top_p < 1:
        kept = _nucleus(probabilities, options.top_p)
        ids, probabilities = ids[kept], probabilities[kept]
        probabilities /= probabilities.sum()
    return ids, probabilities


def _nucleus(probabilities: NDArray[np.float64], top_p: float) -> NDArray[np.int64]:
    """Ascending positions of the nucleus (arXiv 1904.09751): what remains when the tail of mass `1 - top_p` is cut off.

    Tokens below the mean of the tail's mass over all tokens cannot be outside the tail, so only the few above it are
    sorted: a full sort of a vocabulary would cost more than a token of a small decoder.
    """
    tail = 1.0 - top_p
    candidates = np.flatnonzero(probabilities >= tail / len(probabilities))
    values = probabilities[candidates]
    order = np.argsort(values, kind="stable")
    below = max(0.0, 1.0 - values.sum())
    cut = np.searchsorted(below + np.cumsum(values[order]), tail, side="right")
    return np.sort(candidates[order[min(int(cut), len(order) - 1) :]])


class StopStrings:
    """Watches streamed text for the first stop string.

    Attributes:
        found: a stop string came; nothing more will be shown.
    """

    def __init__(self, strings: tuple[str, ...]) -> None:
        self.found = False
        self._strings = strings
        self._held = ""

    def add(self, piece: str) -> str:
        """The text that may be shown after `piece`: nothing of a stop string, nor of what may still become one."""
        if not self._strings or self.found:
            return "" if self.found else piece
        text = self._held + piece
        ends = [(position + len(stop), position) for stop in self._strings if (position := text.find(stop)) >= 0]
        self.found = bool(ends)
        # The first to be complete counts, so that the result does not depend on how the text was cut into pieces.
        cut = min(ends)[1] if ends else len(text) - max(_overlap(text, stop) for stop in self._strings)
        self._held = text[cut:]
        return text[:cut]

    def finish(self) -> str:
        """The text held back, once no more can come."""
        held, self._held = self._held, ""
        return "" if self.found else held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest proper prefix of `stop` that ends `text`."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)
