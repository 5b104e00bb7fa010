"""Grids that GGUF blocks hold without another rounding, and llama.cpp's own rounding to them.

A block is 32 weights of a row with one float16 scale d. Q4_0 is d (q - 8), Q4_1 is d q + m with a float16 m, Q8_0 is
d q with q in int8 (ggml-common.h). A `QuantizedTensor` has these values exactly if its groups are of 32, its scales are
float16 numbers, and, where it has zero points, their products with the scales are, too.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from edgevlm.quant.tensor import QuantizedTensor, QuantScheme

GgufBlock: TypeAlias = Literal["q4_0", "q4_1", "q8_0"]

#: Weights of a block.
BLOCK = 32
#: A scale of so many significant bits times a zero point of 4 bits is a float16 number, which has 11.
_SCALE_BITS = 7
_LARGEST_HALF = 65504.0
#: Elements in float32 at a time.
_ELEMENTS_AT_ONCE = 1 << 22


def block_of(scheme: QuantScheme) -> GgufBlock:
    """The block that holds matrices of a scheme."""
    if scheme.bits == 8:
        return "q8_0"
    return "q4_0" if scheme.symmetric else "q4_1"


def scheme_misfit(scheme: QuantScheme, columns: int) -> str | None:
    """Why GGUF blocks cannot hold matrices of `columns` inputs in this scheme, or None."""
    if scheme.group_size != BLOCK:
        return f"its groups are of {scheme.group_size} inputs, and those of GGUF of {BLOCK}"
    if columns % BLOCK:
        return f"its {columns} inputs are not a multiple of {BLOCK}"
    if scheme.bits == 8 and not scheme.symmetric:
        return "GGUF's 8-bit blocks have no zero points; make it symmetric"
    return None if scheme.half_scales else "its scales are not float16 numbers, so that GGUF would round them"


def misfit(tensor: QuantizedTensor) -> str | None:
    """Why GGUF blocks cannot hold exactly these values, or None."""
    reason = scheme_misfit(replace(tensor.scheme, half_scales=_are_half(tensor.scales)), tensor.codes.shape[1])
    if reason is None and tensor.zero_points is not None and not _are_half(tensor.scales * tensor.zero_points):
        return "products of its scales and zero points are not float16 numbers, so that GGUF would round them"
    return reason


def storable_scales(scales: Tensor, *, symmetric: bool) -> Tensor:
    """The float32 scales nearest to these that a GGUF file holds; choose codes by them, not by the exact ones.

    Scales with zero points lose four bits more, at most 0.4% of the scale, so that whatever the zero point, their
    product is a float16 number.

    Args:
        scales: float32, of any shape; too large ones become infinite.
        symmetric: without zero points.
    """
    if not symmetric:
        mantissas, exponents = torch.frexp(scales)
        scales = torch.ldexp((mantissas * 2**_SCALE_BITS).round() / 2**_SCALE_BITS, exponents)
    return scales.half().float()


def quantize(weight: Tensor, block: Literal["q4_0", "q8_0"]) -> QuantizedTensor:
    """Round a matrix `[N, K]` as llama.cpp does, bit for bit (`quantize_row_q4_0_ref`, `quantize_row_q8_0_ref`).

    Codes are chosen by the scale in float32, which then becomes float16. The arithmetic is that of x86-64; where a
    compiler fuses multiplication and addition, values halfway between two codes may get the other one.

    Raises:
        ValueError: the weight is not a finite matrix, 32 does not divide its width, or a scale exceeds float16.
    """
    if weight.ndim != 2:
        raise ValueError(f"a matrix is needed, not shape {list(weight.shape)}")
    rows, columns = weight.shape
    if columns % BLOCK:
        raise ValueError(f"GGUF blocks have {BLOCK} inputs, which {columns} is not a multiple of")
    codes = np.empty((rows, columns), np.uint8)
    scales = np.empty((rows, columns // BLOCK), np.float32)
    step = max(1, _ELEMENTS_AT_ONCE // columns)
    for start in range(0, rows, step):
        part = slice(start, start + step)
        values = weight[part].detach().float()
        if not bool(torch.isfinite(values).all()):
            raise ValueError("the weight holds a value that is not finite")
        groups = values.reshape(len(values), -1, BLOCK)
        chosen, scale = _q4_0(groups) if block == "q4_0" else _q8_0(groups)
        if float(scale.abs().max()) > _LARGEST_HALF:
            raise ValueError("the weight holds a value too large for a float16 scale")
        codes[part] = chosen.to(torch.uint8).view(len(values), -1).numpy()
        scales[part] = scale.half().float().numpy()
    return QuantizedTensor(codes, scales, None, QuantScheme(4 if block == "q4_0" else 8, BLOCK, half_scales=True))


def _q4_0(groups: Tensor) -> tuple[Tensor, Tensor]:
    """The first element of largest magnitude, with its sign, gets code 0; ties go up."""
    largest = groups.gather(2, groups.abs().argmax(dim=2, keepdim=True))
    scale = largest / -8
    return (groups * _inverse(scale) + 8.5).floor().clamp(0, 15), scale[..., 0]


def _q8_0(groups: Tensor) -> tuple[Tensor, Tensor]:
    """The largest magnitude gets code 127 from the middle; ties go away from zero."""
    scale = groups.abs().amax(dim=2, keepdim=True) / 127
    scaled = groups * _inverse(scale)
    size, whole = scaled.abs(), scaled.abs().floor()
    return scaled.sign() * (whole + (2 * (size - whole)).floor()) + 128, scale[..., 0]


def _inverse(scale: Tensor) -> Tensor:
    """1 / scale; 0 where that is no number, in groups too small for any scale of float16."""
    inverse = 1 / scale
    return torch.where(inverse.isfinite(), inverse, 0)


def _are_half(values: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> bool:
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(values).all() and (values.astype(np.float16).astype(np.float32) == values).all())
