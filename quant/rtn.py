"""Round-to-nearest: the quantizer that needs no data.

In: a weight `[N, K]` of any float dtype. Out: a `QuantizedTensor` whose groups of `group_size` inputs share a scale
(and a zero point). Symmetric groups follow MLAS, the kernels of ONNX Runtime: the element of largest magnitude, with
its sign, maps to the one code without a mirror image, -2^(bits-1), so that no code is wasted.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

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
        block = weight[part].detach().float()
        if not bool(torch.isfinite(block).all()):
            raise ValueError("the weight holds a value that is not finite")
        grouped = torch.nn.functional.pad(block, (0, groups * scheme.group_size - columns))
        code, scale, zero = _quantize_groups(grouped.view(-1, groups, scheme.group_size), scheme)
        codes[part] = code.view(-1, groups * scheme.group_size)[:, :columns].numpy()
        scales[part] = scale.numpy()
        if zeros is not None:
            zeros[part] = zero.numpy()
    return QuantizedTensor(codes, scales, zeros, scheme)


def _quantize_groups(groups: Tensor, scheme: QuantScheme) -> tuple[Tensor, Tensor, Tensor]:
    """Codes uint8 `[n, G, group]`, scales float32 `[n, G]` and zero points uint8 `[n, G]` of float32 groups.

    A short group arrives padded with zeros, which change neither its range (it always includes zero) nor its scale.
    """
    levels, middle = (1 << scheme.bits) - 1, 1 << (scheme.bits - 1)
    low, high = groups.amin(dim=2).clamp(max=0), groups.amax(dim=2).clamp(min=0)
    if scheme.symmetric:
        scale = torch.where(high > -low, high, low) / -middle
        zero = torch.full_like(scale, middle)
    else:
        scale = (high - low) / levels
        zero = torch.where(scale > 0, -low / scale, 0).round().clamp(0, levels)
    codes = (groups / torch.where(scale == 0, 1, scale)[..., None]).round_().add_(zero[..., None]).clamp_(0, levels)
    return codes.to(torch.uint8), scale, zero.to(torch.uint8)
