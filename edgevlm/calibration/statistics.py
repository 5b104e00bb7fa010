"""What passes collect of the inputs of a linear layer: channel norms and second moments.

Each is made for a number of input channels and is given rows `[S, C]`, sample after sample, in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor


class SquaredNorms:
    """Mean of the squares of each channel: what Wanda (arXiv 2306.11695) scores weights by, up to the count."""

    def __init__(self, channels: int) -> None:
        self.total = torch.zeros(channels, dtype=torch.float64)
        self.rows = 0

    def add(self, rows: Tensor) -> None:
        """Count rows `[S, C]`."""
        self.total += rows.double().square().sum(dim=0)
        self.rows += len(rows)

    @property
    def mean(self) -> Tensor:
        """float32 `[C]`."""
        return (self.total / max(self.rows, 1)).float()


class SecondMoments:
    """Mean of x xᵀ over the rows x, `[C, C]`: half the Hessian of a layer's squared output error."""

    def __init__(self, channels: int) -> None:
        self._total = torch.zeros(channels, channels)
        self.rows = 0

    def add(self, rows: Tensor) -> None:
        """Count rows `[S, C]`."""
        self._total.addmm_(rows.T, rows)
        self.rows += len(rows)

    @property
    def mean(self) -> Tensor:
        """float32 `[C, C]`, symmetric."""
        return self._total / max(self.rows, 1)


def relative_error(difference: Tensor, weight: Tensor, moments: Tensor) -> float:
    """Squared error of a linear layer's outputs over their squares, on the inputs with these second moments.

    Args:
        difference: `[N, C]`, what was taken from the weight.
        weight: `[N, C]`, before.
        moments: `[C, C]`.
    """

    def energy(matrix: Tensor) -> float:
        return float(((matrix @ moments) * matrix).sum(dtype=torch.float64))

    return energy(difference) / max(energy(weight), 1e-30)


def inverse_factor(moments: Tensor, damping: float) -> Tensor:
    """U, upper triangular `[C, C]`, with Uᵀ U = (M + d I)⁻¹, d being `damping` times the mean of M's diagonal.

    U_jj² is the diagonal element j of the inverse of what is left of M once the channels before j are gone: what
    optimal brain surgeon divides by, channel after channel (SparseGPT, arXiv 2301.00774; GPTQ, arXiv 2210.17323).

    Args:
        moments: symmetric, positive semidefinite.
        damping: where float32 is not enough, it is raised tenfold until it is.
    """
    level = max(float(moments.diagonal().mean()), 1e-30)
    while True:
        # With rows and columns in reverse a lower factor L gives M = R Rᵀ, R upper, so that U is the inverse of R.
        damped = moments.flip(0, 1)
        damped.diagonal().add_(damping * level)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            break
        damping *= 10
    factor: Tensor = torch.linalg.solve_triangular(lower.flip(0, 1), torch.eye(len(moments)), upper=True)
    return factor
