"""P-Sigmoid (arXiv 2412.00556): how many image tokens each part of a decoder gets of one budget, by a falling sigmoid.

Layer l of L keeps the share r(l) = 1 / (1 + exp(a ((l + 1/2) / L - m))) of an image's N tokens, a being the steepness
and m the middle. A decoder has stages behind some layers; the layers between two of them make a part, which has the
mean of its layers' shares. All tokens go through the layers in front of the first stage, whatever r says. The budget is
the mean over layers of the share that goes through them; of the two parameters it determines m, so that a is left.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

#: Halvings; more would end so near to where a count changes that rounding decides.
_STEPS = 32


def shares(layers: int, steepness: float, middle: float) -> list[float]:
    """r(l) of each layer."""
    return [1 / (1 + math.exp(steepness * ((layer + 0.5) / layers - middle))) for layer in range(layers)]


def counts(tokens: int, layers: int, stages: Sequence[int], steepness: float, middle: float) -> list[int]:
    """Tokens behind each stage, falling, 1 at least.

    Args:
        tokens: N.
        layers: L.
        stages: layers in front of each stage, ascending.
        steepness: a.
        middle: m.
    """
    wanted = shares(layers, steepness, middle)
    parts = zip(stages, [*stages[1:], layers], strict=True)
    return [max(1, int(tokens * sum(wanted[start:end]) / (end - start))) for start, end in parts]


def spent(tokens: int, layers: int, stages: Sequence[int], kept: Sequence[int]) -> float:
    """The mean over layers of the share of tokens that goes through them."""
    edges = [0, *stages, layers]
    through = [tokens, *kept]
    return sum((edges[part + 1] - edges[part]) * through[part] for part in range(len(through))) / (tokens * layers)


def middle_for(tokens: int, layers: int, stages: Sequence[int], steepness: float, budget: float) -> float:
    """The largest m with which the counts spend no more than the budget, which one token a part must not exceed."""
    # Where r is 0 or 1 in every layer, as far as counts are concerned.
    low, high = -64 / steepness, 1 + 64 / steepness
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if spent(tokens, layers, stages, counts(tokens, layers, stages, steepness, middle)) > budget:
            high = middle
        else:
            low = middle
    return low
