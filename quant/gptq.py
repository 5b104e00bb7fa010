"""GPTQ (arXiv 2210.17323): columns are rounded from left to right, and those to the right make up for each.

In: a weight `[N, C]` and the second moments `[C, C]` of its inputs. Out: codes whose outputs differ least from the
weight's. With the factor U of the inverse Hessian (`inverse_factor`), rounding column j by e_j costs e_j² / U_jj², and
the columns behind j take over -e_j / U_jj times row j of U. Rows do not see each other, so that matrices with the same
inputs may be given as one. Zeros stay zeros, so that a pruned matrix keeps its pattern; others make up for their share.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from edgevlm.calibration.statistics import inverse_factor
from edgevlm.quant.grid import Grid, fit, grouped, laid_out
from edgevlm.quant.tensor import QuantizedTensor, QuantScheme

#: Columns whose effect on later columns is one matrix product.
BLOCK = 128
#: Of the mean of the Hessian's diagonal, added to it.
DAMPING = 0.01


def gptq(
    weight: Tensor,
    moments: Tensor,
    scheme: QuantScheme,
    *,
    act_order: bool = True,
    damping: float = DAMPING,
) -> QuantizedTensor:
    """Quantize one matrix, or several with the same inputs one below the other.

    Args:
        weight: float32 `[N, C]`, finite.
        moments: float32 `[C, C]`, of the inputs; their scale does not matter.
        scheme: the grid; its groups are of neighbouring channels in any order of rounding.
        act_order: round channels of large inputs first. Grids are then fixed beforehand (static groups); otherwise each
            is laid when its first channel is reached.
        damping: of the Hessian.
    """
    rows, columns = weight.shape
    # Columns stand as rows, where memory is in their order.
    pruned = (weight == 0).T.contiguous()
    size = min(scheme.group_size, columns)
    order = moments.diagonal().argsort(descending=True, stable=True) if act_order else torch.arange(columns)
    if act_order:
        grid = fit(grouped(weight, size), scheme)
    else:
        count = -(-columns // size)
        grid = Grid(torch.zeros(rows, count), torch.zeros(rows, count), (1 << scheme.bits) - 1)
    scales, zeros = grid.scale.T.contiguous(), grid.zero.T.contiguous()
    left = weight.T[order].contiguous()
    factor = inverse_factor(moments[order][:, order], damping)
    codes = torch.empty(columns, rows)
    step = size * max(1, BLOCK // size) if size < columns else BLOCK
    for start in range(0, columns, step):
        end = min(start + step, columns)
        part, local = left[start:end], factor[start:end, start:end]
        errors = torch.empty(end - start, rows)
        with _one_thread():
            for column in range(end - start):
                place = int(order[start + column])
                group = place // size
                if not act_order and place % size == 0:
                    laid = fit(left[place : place + size].T, scheme)
                    scales[group], zeros[group] = laid.scale, laid.zero
                own = Grid(scales[group], zeros[group], grid.top)
                values = part[column][:, None]
                code = torch.where(pruned[place][:, None], own.zero[:, None], own.encode(values))
                errors[column] = ((values - own.decode(code)) / local[column, column])[:, 0]
                part[column:].addr_(local[column, column:], errors[column], alpha=-1)
                codes[place] = code[:, 0]
        left[end:].addmm_(factor[start:end, end:].T, errors, alpha=-1)
    return laid_out(codes.T.contiguous(), Grid(scales.T.contiguous(), zeros.T.contiguous(), grid.top), scheme)


@contextmanager
def _one_thread() -> Iterator[None]:
    """For work in pieces so small that threads would spend their time meeting each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
