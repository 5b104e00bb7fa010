"""Rounding to nearest on grids whose range is shrunk to where the squared error is least: better than RTN, no data.

In: a weight `[N, K]`. Out: codes. A few weights at the ends of a group are clipped so that all others get a finer step.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgevlm.quant.grid import finite, grouped, on_grid, search
from edgevlm.quant.tensor import QuantizedTensor, QuantScheme


def quantize(weight: Tensor, scheme: QuantScheme) -> QuantizedTensor:
    """Quantize one matrix, of any float dtype.

    Raises:
        ValueError: the weight holds a value that is not finite.
    """
    groups = grouped(finite(weight), scheme.group_size)
    return on_grid(groups, search(groups, scheme, torch.ones(groups.shape[1:])), weight.shape[1], scheme)
