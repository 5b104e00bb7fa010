"""What a user may spend, and the schemes of a model's parts that make the most of it.

In: for each part (a decoder layer, the tables) and each scheme that it may have, what it costs in bytes and in answers
(KL divergence when it alone is quantized). Out: one scheme a part. Divergences are taken to add up, so that the
choice is a small integer programme (multiple-choice knapsack), which scipy's `milp` (HiGHS) solves to the end.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, TypeAlias, cast

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from edgevlm.errors import InputError

Kind: TypeAlias = Literal["size", "bits", "kl", "accuracy_drop"]
_WHERE = "quantize field 'budget'"
_HINT = "write size=300MB, bits=4.5, kl=0.01 or accuracy_drop=1.0"
_UNITS = {"": 1, "B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9}


@dataclass(frozen=True)
class Budget:
    """One bound.

    Attributes:
        kind: `size` in bytes and `bits` a weight count the whole model's weights; `kl` in nats and `accuracy_drop` in
            points are what the decoder's quantization may cost.
        value: the bound.
    """

    kind: Kind
    value: float


def parse_budget(text: str) -> Budget:
    """Read `size=300MB`, `bits=4.5`, `kl=0.01` or `accuracy_drop=1.0`.

    Raises:
        ValueError: it has another form, or is not positive.
    """
    match = re.fullmatch(r"(size|bits|kl|accuracy_drop)=([0-9]*\.?[0-9]+(?:e-?[0-9]+)?)\s*([KMG]?B)?", text.strip())
    if match is None or (match[3] and match[1] != "size"):
        raise ValueError(_HINT)
    value = float(match[2]) * _UNITS[match[3] or ""]
    if value <= 0:
        raise ValueError("a budget is more than nothing")
    return Budget(cast(Kind, match[1]), value)


def least_loss(losses: Sequence[Sequence[float]], sizes: Sequence[Sequence[int]], most: float) -> list[int]:
    """The scheme of each part with the least loss in all, within so many bytes, which the smallest schemes keep.

    Args:
        losses: of each part, by scheme.
        sizes: bytes of each part, by scheme.
        most: bytes of all parts together.
    """
    return _solve(losses, sizes, most)


def check_size(budget: Budget, sizes: Sequence[Sequence[int]], other_bytes: int, weights: int) -> float:
    """Bytes that the parts may take together under a budget of `size` or `bits`.

    Args:
        budget: over the whole model.
        sizes: bytes of each part, by scheme.
        other_bytes: of everything that no scheme changes.
        weights: of the whole model.

    Raises:
        InputError: the smallest schemes take more.
    """
    total = budget.value if budget.kind == "size" else budget.value * weights / 8
    needed = sum(map(min, sizes)) + other_bytes
    if needed > total:
        size, bits = math.ceil(needed / 1e4) / 100, math.ceil(800 * needed / weights) / 100
        nearest = f"size={size:.2f}MB" if budget.kind == "size" else f"bits={bits:.2f}"
        raise InputError(
            f"the weights cannot be that small: the smallest schemes take {size:.2f} MB, {bits:.2f} bits each",
            _WHERE,
            f"allow {nearest}, store the vision tower narrower, or prune first",
        )
    return total - other_bytes


def least_size(losses: Sequence[Sequence[float]], sizes: Sequence[Sequence[int]], most: float) -> list[int]:
    """The scheme of each part with the fewest bytes in all, within so much loss.

    Raises:
        InputError: the best schemes lose more.
    """
    least = sum(map(min, losses))
    if least > most:
        raise InputError(
            f"no choice of schemes loses so little: the best has KL {least:.3g}", _WHERE, f"allow kl={least * 1.1:.2g}"
        )
    return _solve(sizes, losses, most)


def _solve(costs: Sequence[Sequence[float]], weights: Sequence[Sequence[float]], most: float) -> list[int]:
    """One choice a row that minimises the sum of costs while that of weights is at most `most`."""
    starts = np.cumsum([0, *map(len, costs)])
    one = np.zeros((len(costs), starts[-1]))
    for row in range(len(costs)):
        one[row, starts[row] : starts[row + 1]] = 1
    flat = np.concatenate([np.asarray(row, float) for row in costs])
    spent = np.concatenate([np.asarray(row, float) for row in weights])
    # In comparable numbers, whatever the units are.
    flat, spent, most = flat / max(flat.max(), 1e-300), spent / max(most, 1e-300), 1.0
    result = milp(
        flat,
        constraints=[LinearConstraint(one, 1, 1), LinearConstraint(spent[None], -np.inf, most)],
        integrality=np.ones(starts[-1]),
        bounds=Bounds(0, 1),
    )
    assert result.x is not None
    return [int(np.argmax(result.x[start:end])) for start, end in pairwise(starts)]
