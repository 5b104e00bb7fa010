"""From logits to the next token, and when to stop.

In: logits `float32[V]` and `SamplingOptions`. Out: a token id. The distribution is that of transformers' temperature,
top-k and top-p warpers in this order; the draws are numpy's, so a seed gives the same tokens on every engine that gives
the same logits. `StopStrings` watches the text for stop strings and holds back what may still become one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import EngineError, InputError

_Floats: TypeAlias = NDArray[np.float32]
_Ids: TypeAlias = NDArray[np.int64]
#: Ascending ids, None for all, and their weights.
_Tokens: TypeAlias = tuple[_Ids | None, _Floats]

_LOG_EPSILON = math.log(np.finfo(np.float32).eps)
_GROUP_SIZE = 128
_BLOCK = 1024
#: One in so many tokens counts as most of them.
_MANY = 8
#: So many of the largest logits hold a nucleus as a rule.
_HEAD = 256
#: So many weights are sorted outright.
_SORTED = 16_384
#: So many weights stand for all; a nucleus ends so many places from where it ends in the sample, or nearer, as a rule.
_SAMPLE, _SLACK = 4096, 96
#: Proposals drawn at a time where tokens are drawn by rejection.
_PROPOSALS = 64


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

    def __call__(self, logits: _Floats) -> int:
        """The next token of logits `[V]`, which stay unchanged.

        Raises:
            EngineError: the logits are not finite.
        """
        if self._options.temperature == 0:
            best = int(logits.argmax())
            _check_finite(logits[best])
            return best
        if self._options.top_p == 1 and not 0 < self._options.top_k < len(logits):
            return _draw_of_all(logits, self._options.temperature, self._random)
        if len(self._scratch) != len(logits):
            self._scratch = np.empty_like(logits)
        ids, weights = likely_tokens(logits, self._options, self._scratch)
        position = _draw(weights, self._random.random())
        return position if ids is None else int(ids[position])


def likely_tokens(logits: _Floats, options: SamplingOptions, scratch: _Floats) -> _Tokens:
    """The tokens of the top k and the nucleus of logits `[V]`, ascending, and weights in proportion to probabilities.

    Temperature must be positive, and top_k or top_p leave something out. Equal logits at the edge of the top k are all
    kept; of equal ones at the edge of the nucleus the higher ids are. Tokens that all together are less probable than
    float32 can tell are left out early: of a vocabulary of 150,000 a few hundred matter as a rule. Where most do, ids
    are None (all) and the weights of those that may not be drawn are 0; they lie in `scratch` `[V]`, since fresh arrays
    of that size cost more than the arithmetic.

    Raises:
        EngineError: the logits are not finite.
    """
    maxima = _group_maxima(logits)
    highest = maxima.max()
    _check_finite(highest)
    negligible = math.log(len(logits)) - _LOG_EPSILON
    floor = highest - np.float32(options.temperature * negligible)
    if 0 < options.top_k < len(logits):
        return _likely_of_top_k(logits, highest, max(floor, _reached_by(maxima, options.top_k)), options, scratch)
    head = _Head(logits, highest, _reached_by(maxima, _HEAD), options)
    if (nucleus := head.nucleus(head.total, head.total + head.most_of_others)) is not None:
        return nucleus
    ids, weights = _above(logits, highest, floor, options, scratch)
    total = float(_block_sums(weights).sum())
    return head.nucleus(total, total) or _kept(ids, weights, _nucleus(weights, options.top_p * total))


def _check_finite(highest: np.float32) -> None:
    """Whatever else is not finite among the logits shows in the largest, but for -inf, which means impossible."""
    if not math.isfinite(highest):
        raise EngineError("the decoder returned logits that are not finite", "logits", "try another decoder engine")


def _above(
    logits: _Floats, highest: np.float32, floor: np.float32, options: SamplingOptions, scratch: _Floats
) -> _Tokens:
    """Tokens and weights of the logits not below `floor`; of all where that is most of them."""
    above = logits >= floor
    ids: _Ids | None = None
    if np.count_nonzero(above) * _MANY <= len(logits):
        ids = np.flatnonzero(above)
        weights = logits[ids]
    else:
        weights = scratch
        np.copyto(weights, logits)
    _exponentiate(weights, highest, options.temperature)
    return ids, weights


def _likely_of_top_k(
    logits: _Floats, highest: np.float32, floor: np.float32, options: SamplingOptions, scratch: _Floats
) -> _Tokens:
    """The k most probable tokens, and of these the nucleus."""
    ids, weights = _above(logits, highest, floor, options, scratch)
    if options.top_k < len(weights):
        ids, weights = _kept(ids, weights, weights >= np.partition(weights, -options.top_k)[-options.top_k])
    if options.top_p < 1:
        total = float(_block_sums(weights).sum())
        ids, weights = _kept(ids, weights, _nucleus(weights, options.top_p * total))
    return ids, weights


def _kept(ids: _Ids | None, weights: _Floats, inside: NDArray[np.bool_]) -> _Tokens:
    """Those inside."""
    if ids is not None:
        return ids[inside], weights[inside]
    weights *= inside.astype(np.float32)
    return None, weights


def _exponentiate(logits: _Floats, highest: np.float32, temperature: float) -> None:
    """Turn logits into weights of which the highest is 1, in place."""
    logits -= highest
    logits /= np.float32(temperature)
    np.exp(logits, out=logits)


def _block_sums(weights: _Floats) -> NDArray[np.float64]:
    """Sums of consecutive blocks of `_BLOCK` weights, the last one shorter: two to three times as fast as `sum`."""
    whole = len(weights) // _BLOCK * _BLOCK
    sums = np.einsum("ij->i", weights[:whole].reshape(-1, _BLOCK))
    return np.append(sums, weights[whole:].sum()).astype(np.float64)


def _draw_of_all(logits: _Floats, temperature: float, random: np.random.Generator) -> int:
    """A token drawn from the whole vocabulary by rejection, with an exponential for a few of the logits alone.

    A group is proposed as if all of its members had its largest logit, then any member of it, which is kept with the
    probability of its own weight against that of the largest: one proposal in `_GROUP_SIZE` at least is.

    Raises:
        EngineError: the logits are not finite.
    """
    maxima = _group_maxima(logits)
    highest = maxima.max()
    _check_finite(highest)
    groups = len(logits) // _GROUP_SIZE
    bounds = np.exp((maxima - highest).astype(np.float64) / temperature)
    bounds[:groups] *= _GROUP_SIZE
    ends = np.cumsum(bounds)
    while True:
        where, member, chance = random.random((3, _PROPOSALS))
        group = ends.searchsorted(where * ends[-1], side="right")
        # Groups are the columns of a table of all logits, and behind them one each of the rest.
        ids = group + np.where(group < groups, (member * _GROUP_SIZE).astype(np.int64), _GROUP_SIZE - 1) * groups
        weights = np.exp((logits[ids] - maxima[group]).astype(np.float64) / temperature)
        if len(kept := np.flatnonzero(chance < weights)):
            return int(ids[kept[0]])


def _draw(weights: _Floats, uniform: float) -> int:
    """The position, of a weight above 0, where the running sum passes `uniform` of the whole; found by blocks."""
    start, rest = 0, uniform
    if len(weights) > _SAMPLE:
        block, rest = _passed(np.cumsum(_block_sums(weights)), uniform)
        start, weights = block * _BLOCK, weights[block * _BLOCK : (block + 1) * _BLOCK]
    return start + _passed(np.cumsum(weights, dtype=np.float64), rest)[0]


def _passed(ends: NDArray[np.float64], fraction: float) -> tuple[int, float]:
    """The first of the running sums `ends` above `fraction` of the last, and the fraction of its step that is passed.

    Both fractions are below 1, which float64 cannot round up to 1 here; so a step of 0 is never chosen.
    """
    target = fraction * float(ends[-1])
    position = int(ends.searchsorted(target, side="right"))
    before = float(ends[position - 1]) if position else 0.0
    return position, (target - before) / (float(ends[position]) - before)


def _group_maxima(logits: _Floats) -> _Floats:
    """The largest logits of disjoint groups that together hold all logits, in one pass."""
    groups = len(logits) // _GROUP_SIZE
    grouped = logits[: groups * _GROUP_SIZE].reshape(_GROUP_SIZE, groups)
    return np.append(grouped.max(axis=0), logits[grouped.size :])


def _reached_by(maxima: _Floats, k: int) -> np.float32:
    """A value that at least k logits reach: the k-th largest of the groups' maxima, since k groups have one each.

    In a large vocabulary it is close below the k-th largest logit.
    """
    value: np.float32 = np.partition(maxima, -k)[-k] if k <= len(maxima) else np.float32(-np.inf)
    return value


class _Head:
    """The most probable tokens, among which a nucleus can often be told without the weights of all others.

    A nucleus (arXiv 1904.09751) is the smallest set of the most probable tokens whose mass reaches top_p.

    Args:
        logits: `[V]`.
        highest: the largest of them.
        bound: the head's logits reach this, the others do not.
        options: temperature and top_p.

    Attributes:
        total: the weight of the head.
        most_of_others: all others together have at most this weight.
    """

    def __init__(self, logits: _Floats, highest: np.float32, bound: np.float32, options: SamplingOptions) -> None:
        self._top_p = options.top_p
        self._ids = np.flatnonzero(logits >= bound)
        self._weights = logits[self._ids]
        _exponentiate(self._weights, highest, options.temperature)
        self._values = np.sort(self._weights)[::-1]
        self._sums = np.cumsum(self._values, dtype=np.float64)
        self.total = float(self._sums[-1])
        least = math.exp((float(bound) - float(highest)) / options.temperature)
        self.most_of_others = (len(logits) - len(self._ids)) * least

    def nucleus(self, least: float, most: float) -> tuple[_Ids, _Floats] | None:
        """Ids and weights, if the nucleus is the same whether the weight of all tokens is `least` or `most`."""
        last = int(self._sums.searchsorted(self._top_p * most))
        if last == len(self._sums) or (last > 0 and self._sums[last - 1] >= self._top_p * least):
            return None
        inside = _heaviest(self._weights, self._values[last], last + 1)
        return self._ids[inside], self._weights[inside]


def _nucleus(weights: _Floats, mass: float) -> NDArray[np.bool_]:
    """Which of the weights are the fewest of the heaviest that together have `mass`.

    A sample of the weights tells between which two values the lightest one in the nucleus lies; sums over all of them
    confirm it, so that only the weights between the two are sorted.
    """
    count, missing, pool = 0, mass, weights
    while len(pool) > _SORTED:
        high, low = _bracket(pool, missing)
        heavier = pool > high
        between = pool[np.flatnonzero((pool >= low) & ~heavier)]
        above, part = np.count_nonzero(heavier), float(_block_sums(pool * heavier.astype(np.float32)).sum())
        if part >= missing:
            narrowed = pool[heavier]
        else:
            count, missing, narrowed = count + int(above), missing - part, between
            part = float(_block_sums(between).sum())
            if part < missing and above + len(between) < len(pool):
                count, missing, narrowed = count + len(between), missing - part, pool[pool < low]
        if len(narrowed) == len(pool):
            break
        pool = narrowed
    values = np.sort(pool)[::-1]
    last = min(int(np.searchsorted(np.cumsum(values, dtype=np.float64), missing)), len(values) - 1)
    return _heaviest(weights, values[last], count + last + 1)


def _bracket(pool: _Floats, mass: float) -> tuple[np.float32, np.float32]:
    """Two values, the larger first, between which the heaviest weights that together have `mass` probably end."""
    sample = np.sort(pool[:: len(pool) // _SAMPLE])[::-1]
    sums = np.cumsum(sample, dtype=np.float64)
    guess = int(np.searchsorted(sums, mass / float(_block_sums(pool).sum()) * sums[-1]))
    high, low = sample[max(guess - _SLACK, 0)], sample[min(guess + _SLACK, len(sample) - 1)]
    return high, low


def _heaviest(weights: _Floats, edge: np.float32, count: int) -> NDArray[np.bool_]:
    """Which weights are the `count` heaviest, the lightest of them being `edge`; of equal ones the last are."""
    inside = weights >= edge
    if surplus := np.count_nonzero(inside) - count:
        inside[np.flatnonzero(weights == edge)[:surplus]] = False
    return inside


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
