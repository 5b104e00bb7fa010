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

_GROUP_SIZE = 128
_BLOCK = 1024
#: One in so many tokens counts as most of them.
_MANY = 8


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
    """Chooses tokens; holds the random generator and a buffer of the vocabulary's size."""

    def __init__(self, options: SamplingOptions) -> None:
        self._options = options
        self._random = np.random.default_rng(options.seed)
        self._scratch = np.empty(0, np.float32)

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
        if len(self._scratch) != len(logits):
            self._scratch = np.empty_like(logits)
        ids, weights = likely_tokens(logits, self._options, self._scratch)
        position = _draw(weights, self._random.random())
        return position if ids is None else int(ids[position])


def likely_tokens(
    logits: NDArray[np.float32], options: SamplingOptions, scratch: NDArray[np.float32]
) -> tuple[NDArray[np.int64] | None, NDArray[np.float32]]:
    """The tokens that may be drawn from logits `[V]`, ascending, and weights in proportion to their probabilities.

    Temperature must be positive. Equal logits at the edge of the top k are all kept; of equal ones at the edge of the
    nucleus the higher ids are. Tokens that all together are less probable than float32 can tell are left out early: of
    a vocabulary of 150,000 a few hundred matter as a rule. Where most do, ids are None (all), and the weights lie in
    `scratch` `[V]`, since fresh arrays of that size cost more than the arithmetic.
    """
    highest = logits.max()
    negligible = np.log(len(logits)) - np.log(np.finfo(np.float32).eps)
    floor = highest - np.float32(options.temperature * negligible)
    if 0 < options.top_k < len(logits):
        floor = max(floor, _bound_of_top_k(logits, options.top_k))
    above = logits >= floor
    ids: NDArray[np.int64] | None = None
    if np.count_nonzero(above) * _MANY > len(logits):
        weights = scratch
        np.subtract(logits, highest, out=weights)
    else:
        ids = np.flatnonzero(above)
        weights = logits[ids] - highest
    if 0 < options.top_k < len(weights):
        kept = np.flatnonzero(weights >= np.partition(weights, -options.top_k)[-options.top_k])
        ids, weights = (kept if ids is None else ids[kept]), weights[kept]
    weights /= np.float32(options.temperature)
    np.exp(weights, out=weights)
    if options.top_p < 1:
        kept = _nucleus(weights, options.top_p)
        ids, weights = (kept if ids is None else ids[kept]), weights[kept]
    return ids, weights


def _draw(weights: NDArray[np.float32], uniform: float) -> int:
    """The position where the weights' running sum passes `uniform` of the whole, found by blocks."""
    starts = np.arange(0, len(weights), _BLOCK)
    sums = np.add.reduceat(weights, starts).astype(np.float64)
    ends = np.cumsum(sums)
    target = uniform * ends[-1]
    block = min(int(np.searchsorted(ends, target, side="right")), len(ends) - 1)
    start = int(starts[block])
    inside = np.cumsum(weights[start : start + _BLOCK], dtype=np.float64) + (ends[block] - sums[block])
    return start + min(int(np.searchsorted(inside, target, side="right")), len(inside) - 1)


def _bound_of_top_k(logits: NDArray[np.float32], k: int) -> np.float32:
    """A value that at least k logits reach, close below the k-th largest, in one pass.

    The k-th largest of the maxima of many groups is such a value, since k groups hold a logit that reaches it.
    """
    groups = len(logits) // _GROUP_SIZE
    if groups < k:
        return np.float32(-np.inf)
    maxima = logits[: groups * _GROUP_SIZE].reshape(_GROUP_SIZE, groups).max(axis=0)
    bound: np.float32 = np.partition(maxima, -k)[-k]
    return bound


def _nucleus(weights: NDArray[np.float32], top_p: float) -> NDArray[np.int64]:
    """Ascending positions of the nucleus (arXiv 1904.09751): what remains when the tail of mass `1 - top_p` is cut off.

    Tokens less probable than the tail's mass spread over all tokens lie in the tail, so only those above are sorted.
    """
    total = float(weights.sum())
    tail = (1.0 - top_p) * total
    candidates = np.flatnonzero(weights >= np.float32(tail / len(weights)))
    values = weights[candidates].astype(np.float64)
    order = np.argsort(values, kind="stable")
    below = max(0.0, total - values.sum())
    cut = int(np.searchsorted(below + np.cumsum(values[order]), tail, side="right"))
    return np.sort(candidates[order[min(cut, len(order) - 1) :]])


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
