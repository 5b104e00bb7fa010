"""How much each decoder layer gives of a sparsity that the whole decoder must reach.

In: a score of importance for each layer and the number of its weights. Out: the layer's share of zeros, then whole
numbers of zeros for its matrices. The rule is that of ECoFLaP (arXiv 2310.02998): what is kept is proportional to the
score, no layer loses more than the target and a tenth, and what such a limit leaves over goes to the others.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

#: No layer's sparsity is above the target by more than this.
CAP = 0.1


def allocate(scores: Sequence[float], sizes: Sequence[int], sparsity: float, cap: float = CAP) -> list[float]:
    """Share of zeros of each layer, so that the sum over all weights is `sparsity`.

    Args:
        scores: importance, not negative.
        sizes: weights.
        sparsity: 0 to 1, of all layers together.
        cap: how far a layer may be above it.
    """
    weight, size = np.array(scores, np.float64), np.array(sizes, np.float64)
    if weight.max() <= 0:
        return [sparsity] * len(scores)
    # A layer without importance still takes part in what the others cannot hold.
    weight = weight / weight.max() + 1e-9
    least, wanted = max(0.0, 1 - sparsity - cap), (1 - sparsity) * size.sum()
    low, high = 0.0, 1 / weight.min()
    for _ in range(200):
        middle = (low + high) / 2
        kept = np.clip(middle * weight, least, 1)
        low, high = (middle, high) if (kept * size).sum() < wanted else (low, middle)
    return [float(1 - share) for share in np.clip(high * weight, least, 1)]


def whole_zeros(sizes: Sequence[int], shares: Sequence[float]) -> list[int]:
    """Zeros of each matrix, rounded so that they sum up to what the shares ask for, to one weight."""
    zeros: list[int] = []
    exact = 0.0
    for size, share in zip(sizes, shares, strict=True):
        exact += size * share
        zeros.append(min(size, round(exact) - sum(zeros)))
    return zeros
