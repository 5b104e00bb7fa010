"""Round-to-nearest: the quantizer that needs no data.

In: a weight `[N, K]` of any float dtype. Out: a `QuantizedTensor` whose groups of `group_size` inputs share a scale
(and a zero point); `edgevlm.quant.grid` says where the grids lie.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from edgevlm.quant.grid import finite, fit, grouped
from edgevlm.quant.tensor import QuantizedTensor, QuantScheme

#: Elements in float32 at a time: an embedding of 150,000 rows is converted piecewise, not whole.
_ELEMENTS_AT_ONCE = 1 << 24


def quantize(weight: Tensor, scheme: QuantScheme) -> QuantizedTensor:
    """Quantize a matrix `[N, K]` group by group along K.

    The last group is shorter where `group_size` does not divide K. A group of zeros gets scale 0.

    Raises:
        ValueError: the weight is not a finite matrix.
    """
    if weight.ndim != 2:
        raise ValueError(f"a matrix is needed, not shape {list(weight.shape)}")
    rows, columns = weight.shape
    groups = -(-columns // scheme.group_size)
    codes = np.empty((rows, columns), dtype=np.uint8)
    scales = np.empty((rows, groups), dtype=np.float32)
    zeros = None if scheme.symmetric else np.empty((rows, groups), dtype=np.uint8)
    step = max(1, _ELEMENTS_AT_ONCE // columns)
    for start in range(0, rows, step):
        part = slice(start, start + step)
        block = finite(weight[part])
        padded = grouped(block, scheme.group_size)
        grid = fit(padded, scheme)
        codes[part] = grid.encode(padded).to(torch.uint8).view(len(block), -1)[:, :columns].numpy()
        scales[part] = grid.scale.numpy()
        if zeros is not None:
            zeros[part] = grid.zero.to(torch.uint8).numpy()
    return QuantizedTensor(codes, scales, zeros, scheme)
