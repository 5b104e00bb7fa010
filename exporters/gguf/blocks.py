"""Quantized matrices as the blocks of a GGUF file, every number as it is.

In: a `QuantizedTensor` on a grid that GGUF holds (`edgevlm.quant.gguf_grid`). Out: bytes, laid out as ggml defines them
(ggml-common.h): of each 32 inputs of a row the scale d as float16; in Q4_1 the offset m as float16; then 32 codes, in
4-bit blocks the first 16 in the low halves of 16 bytes and the others in the high halves. ggml's dequantization gives
bit for bit what `QuantizedTensor.dequantize` does.
"""

from __future__ import annotations

import gguf
import numpy as np
from numpy.typing import NDArray

from edgevlm.quant.gguf_grid import BLOCK, block_of, misfit
from edgevlm.quant.tensor import QuantizedTensor, QuantScheme

_ROWS_AT_ONCE = 4096


def block_type(scheme: QuantScheme) -> gguf.GGMLQuantizationType:
    """The type of the blocks that hold matrices of a scheme."""
    return gguf.GGMLQuantizationType[block_of(scheme).upper()]


def to_blocks(tensor: QuantizedTensor) -> NDArray[np.uint8]:
    """Blocks of a matrix `[N, K]`: uint8 `[N, K / 32 * bytes of a block]`.

    Raises:
        ValueError: they cannot hold these values without rounding.
    """
    reason = misfit(tensor)
    if reason is not None:
        raise ValueError(reason)
    rows, columns = tensor.codes.shape
    groups = columns // BLOCK
    size = gguf.GGML_QUANT_SIZES[block_type(tensor.scheme)][1]
    blocks = np.empty((rows, groups, size), np.uint8)
    for start in range(0, rows, _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        codes, scales = tensor.codes[part].reshape(-1, groups, BLOCK), tensor.scales[part]
        zeros = None if tensor.zero_points is None else tensor.zero_points[part]
        _fill(blocks[part], codes, scales, zeros, tensor.scheme)
    return blocks.reshape(rows, groups * size)


def _fill(
    blocks: NDArray[np.uint8],
    codes: NDArray[np.uint8],
    scales: NDArray[np.float32],
    zeros: NDArray[np.uint8] | None,
    scheme: QuantScheme,
) -> None:
    """Write blocks `[n, G, bytes]` of codes `[n, G, 32]`, scales and perhaps zero points `[n, G]`."""
    blocks[..., :2] = _half_bytes(scales)
    if scheme.bits == 8:
        blocks[..., 2:] = codes ^ 128  # the bytes of code - 128 as int8
        return
    if zeros is None:
        # Codes of fewer bits have their middle elsewhere than Q4_0 has.
        codes = codes + np.uint8(8 - (1 << (scheme.bits - 1)))
    else:
        blocks[..., 2:4] = _half_bytes(-(scales * zeros))
    half = BLOCK // 2
    blocks[..., -half:] = codes[..., :half] | (codes[..., half:] << 4)


def _half_bytes(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Little-endian float16 bytes `[..., 2]`."""
    return values.astype("<f2")[..., None].view(np.uint8)
