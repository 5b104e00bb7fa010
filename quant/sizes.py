"""Bytes that weights take in a file, counted from shapes before anything is written.

They follow what exporters lay out: codes, float32 scales and packed zero points for ONNX, blocks for GGUF; in the
vision tower matrices and kernels in the precision asked for, the rest in float32.
"""

from __future__ import annotations

import numpy as np
from torch import nn

from edgevlm.models.vlm import VisionModel
from edgevlm.quant.gguf_grid import BLOCK
from edgevlm.quant.schemes import Scheme, half_prefixes, vision_scheme
from edgevlm.quant.tensor import QuantScheme
from edgevlm.recipe import Precision

#: Smaller tensors of a vision graph stay as they are.
VISION_INLINE_BELOW = 1024


def matrix_bytes(rows: int, columns: int, scheme: Scheme) -> int:
    """Bytes of a matrix `[N, K]`."""
    if not isinstance(scheme, QuantScheme):
        return rows * columns * np.dtype(scheme).itemsize
    if scheme.half_scales:
        offsets = 0 if scheme.symmetric else 2
        return rows * columns // BLOCK * (BLOCK * scheme.storage_bits // 8 + 2 + offsets)
    groups = -(-columns // scheme.group_size)
    codes = groups * scheme.group_size * scheme.storage_bits // 8
    zeros = 0 if scheme.symmetric else -(-groups * scheme.storage_bits // 8)
    return rows * (codes + 4 * groups + zeros)


def vision_bytes(vision: VisionModel, precision: Precision) -> int:
    """Bytes of a vision tower's weights."""
    total = 0
    halves = half_prefixes(vision)
    for path, module in vision.named_modules():
        for name, tensor in module.named_parameters(path, recurse=False):
            stored: Precision = "fp16" if precision in ("int8", "int4") and name.startswith(halves) else precision
            # Matrices of linear layers are written transposed.
            shape = tuple(tensor.shape)[:: -1 if isinstance(module, nn.Linear) else 1]
            scheme = vision_scheme(shape, stored) if 4 * tensor.numel() >= VISION_INLINE_BELOW else "float32"
            if isinstance(scheme, QuantScheme) and scheme.bits == 8:
                # A scale and a zero point for each output channel.
                total += tensor.numel() + 5 * shape[1 if len(shape) == 2 else 0]
            elif isinstance(scheme, QuantScheme):
                total += tensor.numel() // 2 + 4 * tensor.numel() // scheme.group_size
            else:
                total += tensor.numel() * np.dtype(scheme).itemsize
    return total


def float_bytes(module: nn.Module) -> int:
    """Bytes of a module's vectors, which stay in float32 whatever its matrices become."""
    return sum(4 * tensor.numel() for tensor in module.parameters() if tensor.ndim < 2)
