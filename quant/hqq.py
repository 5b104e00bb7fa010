"""HQQ (half-quadratic quantization, Badri and Shaji 2023): grids that outliers do not pull, without data.

In: a weight `[N, K]`. Out: codes on grids that minimise the sum of |w - q(w)|^p, p < 1. An auxiliary error E splits the
problem in two that have closed forms: E is the residual, each element shrunk towards zero (the proximal step of the
p-norm), and the scale is the least-squares one between codes and weight minus E. The authors move real zero points
instead; the fast kernels of ONNX Runtime take whole ones, so here the scale moves.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgevlm.quant.gguf_grid import storable_scales
from edgevlm.quant.grid import Grid, finite, fit, grouped, on_grid
from edgevlm.quant.tensor import QuantizedTensor, QuantScheme

#: The authors' values: p of the p-norm, penalty of the first step, its growth, steps at most.
NORM, PENALTY, GROWTH, STEPS = 0.7, 10.0, 1.01, 20


def quantize(weight: Tensor, scheme: QuantScheme) -> QuantizedTensor:
    """Quantize one matrix `[N, K]`, of any float dtype.

    Raises:
        ValueError: the weight holds a value that is not finite.
    """
    groups = grouped(finite(weight), scheme.group_size)
    # The penalty is made for weights of about this size.
    level = groups.abs().mean().clamp(min=1e-30)
    scaled = groups / level
    grid, penalty = fit(scaled, scheme), PENALTY
    best, least = grid, _error(scaled, grid)
    for _ in range(STEPS):
        steps = grid.encode(scaled) - grid.zero[..., None]
        target = scaled - _shrunk(scaled - steps * grid.scale[..., None], penalty)
        squares = steps.square().sum(dim=-1)
        scale = torch.where(squares > 0, (steps * target).sum(dim=-1) / squares.clamp(min=1e-30), grid.scale)
        grid = Grid(scale, grid.zero, grid.top)
        error = _error(scaled, grid)
        better = error < least
        if not bool(better.any()):
            break
        least = torch.where(better, error, least)
        best = Grid(torch.where(better, scale, best.scale), best.zero, best.top)
        penalty *= GROWTH
    scale = best.scale * level
    final = Grid(
        storable_scales(scale, symmetric=scheme.symmetric) if scheme.half_scales else scale, best.zero, best.top
    )
    return on_grid(groups, final, weight.shape[1], scheme)


def _shrunk(residual: Tensor, penalty: float) -> Tensor:
    size = residual.abs()
    return residual.sign() * (size - size.clamp(min=1e-8) ** (NORM - 1) / penalty).clamp(min=0)


def _error(groups: Tensor, grid: Grid) -> Tensor:
    """Sum of |w - q(w)|^p of each group."""
    return ((grid.nearest(groups) - groups).abs() ** NORM).sum(dim=-1)
