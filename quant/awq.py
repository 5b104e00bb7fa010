"""AWQ (arXiv 2306.00978): input channels that matter are made larger before rounding, and their inputs smaller.

In: a weight `[N, C]` and the second moments `[C, C]` of its inputs. Out: the factor `[C]` of each input channel, chosen
so that the outputs of the rounded weight differ least; and codes on grids whose range is shrunk to the same end. What
made the inputs is divided by the factors (`edgevlm.quant.folding`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgevlm.calibration.statistics import relative_error
from edgevlm.quant.grid import fit, grouped, on_grid, search
from edgevlm.quant.tensor import QuantizedTensor, QuantScheme

#: Exponents of the inputs' root mean square that are tried, from 0 to 1.
STEPS = 20
#: Rows that the search looks at.
_ROWS = 1024


def channel_factors(weight: Tensor, moments: Tensor, scheme: QuantScheme, owners: Tensor | None = None) -> Tensor:
    """Factors float32 `[C]` for the input channels of a matrix, or of several with the same inputs.

    They are powers of the inputs' root mean square, made to have 1 between the largest and the smallest; all 1 where
    nothing is better.

    Args:
        weight: float32 `[N, C]`.
        moments: float32 `[C, C]`.
        scheme: the grid.
        owners: int64 `[C]`; channels of the same owner get the same factor.
    """
    rows = weight[torch.linspace(0, len(weight) - 1, min(_ROWS, len(weight))).long()]
    squares = moments.diagonal().clamp(min=0)
    if owners is not None:
        sums = torch.zeros(int(owners.max()) + 1).index_add_(0, owners, squares)
        squares = (sums / torch.bincount(owners))[owners]
    size = squares.clamp(min=1e-8 * float(squares.max()) + 1e-30).sqrt()
    best, least = torch.ones_like(size), float("inf")
    for step in range(STEPS):
        factors = size ** (step / STEPS)
        factors /= (factors.max() * factors.min()).sqrt()
        scaled = grouped(rows * factors, scheme.group_size)
        rounded = fit(scaled, scheme).nearest(scaled).view(len(rows), -1)[:, : weight.shape[1]] / factors
        error = relative_error(rounded - rows, rows, moments)
        if error < least:
            best, least = factors, error
    return best


def clipped(weight: Tensor, moments: Tensor, scheme: QuantScheme) -> QuantizedTensor:
    """Round a matrix to the grids on which the outputs of each group, taken alone, differ least.

    Args:
        weight: float32 `[N, C]`, its channels multiplied by their factors.
        moments: float32 `[C, C]`, of the inputs divided by them.
        scheme: the grid.
    """
    groups = grouped(weight, scheme.group_size)
    grid = search(groups, scheme, moment_blocks(moments, scheme.group_size))
    return on_grid(groups, grid, weight.shape[1], scheme)


def moment_blocks(moments: Tensor, size: int) -> Tensor:
    """Second moments of each group's inputs alone, `[G, size, size]`."""
    columns = len(moments)
    padded = torch.nn.functional.pad(moments, (0, -columns % size, 0, -columns % size))
    count = len(padded) // size
    return padded.view(count, size, count, size).diagonal(dim1=0, dim2=2).permute(2, 0, 1).contiguous()
