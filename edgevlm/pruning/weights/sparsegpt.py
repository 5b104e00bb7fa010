"""SparseGPT (arXiv 2301.00774): columns are pruned from left to right, and those to the right make up for each.

In: a weight `[N, C]` and the second moments `[C, C]` of its inputs. Out: the weight with zeros, the others moved so
that the outputs change least. With the factor U of the inverse Hessian (`inverse_factor`), setting w_j to zero costs
w_j² / U_jj², and the columns behind j take over -w_j / U_jj times row j of U.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgevlm.calibration.statistics import inverse_factor
from edgevlm.pruning.weights.masks import Pattern, lowest, lowest_in_groups

#: Columns whose mask is chosen at once, and whose effect on later columns is one matrix product.
BLOCK = 128
#: Of the mean of the Hessian's diagonal, added to it.
DAMPING = 0.01


def sparsegpt(
    weight: Tensor, moments: Tensor, target: int | Pattern, *, block: int = BLOCK, damping: float = DAMPING
) -> Tensor:
    """Prune one matrix.

    Args:
        weight: float32 `[N, C]`.
        moments: float32 `[C, C]`, of the inputs; their scale does not matter.
        target: how many zeros, or the pattern that they make.
        block: columns at once.
        damping: of the Hessian.
    """
    rows, columns = weight.shape
    factor = inverse_factor(moments, damping)
    weight = weight.clone()
    chosen = 0
    for start in range(0, columns, block):
        end = min(start + block, columns)
        part, local = weight[:, start:end], factor[start:end, start:end]
        mask = torch.zeros(rows, end - start, dtype=torch.bool)
        if not isinstance(target, Pattern):
            # Every block takes its share, in whole numbers.
            wanted = target * end // columns - chosen
            mask = lowest(part.square() / local.diagonal().square(), wanted)
            chosen += wanted
        errors = torch.zeros(rows, end - start)
        for column in range(end - start):
            if isinstance(target, Pattern) and (start + column) % target.group == 0:
                ahead = slice(column, column + target.group)
                scores = part[:, ahead].square() / local.diagonal()[ahead].square()
                mask[:, ahead] = lowest_in_groups(scores, target)
            gone = torch.where(mask[:, column], part[:, column], 0)
            errors[:, column] = gone / local[column, column]
            part[:, column:] -= errors[:, column : column + 1] * local[column, column:]
            part[mask[:, column], column] = 0
        weight[:, end:] -= errors @ factor[start:end, end:]
    return weight
