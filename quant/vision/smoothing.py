"""SmoothQuant (arXiv 2211.10438) where it helps: large channels of an input become smaller, and their weights larger.

In: of a group of layers with one input, that input's largest magnitude a channel and a sample of its rows. Out:
factors, or None where rounding without them costs no more.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from edgevlm.quant.vision.plan import LARGEST, rounded_values, rounded_weight

#: How much of the difficulty moves into the weights; the paper's alpha.
STRENGTHS = (0.25, 0.5, 0.75)
#: Factors have to lower the squared error of the outputs at least to this share.
_WORTH_IT = 0.9


def smoothing_factors(inputs: Tensor, weights: Sequence[Tensor], largest: Tensor) -> Tensor | None:
    """Factors float32 `[C]` by which input channels are divided and weights multiplied, or None.

    s_j = max|X_j|^a / max|W_j|^(1-a), scaled to a geometric mean of 1; a is the one of `STRENGTHS` with the least
    squared error of the outputs, weights rounded a row at a time and inputs as one tensor.

    Args:
        inputs: sample rows `[P, C]`, float32.
        weights: of the layers that read them, `[N, C]`, float32.
        largest: max|X_j| over all images, `[C]`.
    """
    exact = [inputs @ weight.T for weight in weights]

    def error(factors: Tensor) -> float:
        rounded = rounded_values(inputs / factors, max(float((largest / factors).max()), 1e-30) / LARGEST)
        pairs = zip(weights, exact, strict=True)
        return float(sum((rounded @ rounded_weight(weight * factors).T - out).square().sum() for weight, out in pairs))

    heaviest = torch.stack([weight.abs().amax(dim=0) for weight in weights]).amax(dim=0)
    alive = (largest > 0) & (heaviest > 0)
    if not bool(alive.any()):
        return None
    candidates = []
    for strength in STRENGTHS:
        factors = torch.where(alive, largest, 1) ** strength / torch.where(alive, heaviest, 1) ** (1 - strength)
        factors = factors / factors[alive].log().mean().exp()
        candidates.append(torch.where(alive, factors, 1.0))
    errors = [error(factors) for factors in candidates]
    best = min(range(len(errors)), key=errors.__getitem__)
    return candidates[best] if errors[best] < _WORTH_IT * error(torch.ones_like(largest)) else None
