"""The bytes that ONNX Runtime's block-quantized kernels read (MatMulNBits and GatherBlockQuantized share them)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgevlm.quant.tensor import QuantizedTensor


def pack_codes(tensor: QuantizedTensor) -> NDArray[np.uint8]:
    """Codes `[N, K]` as blocks `[N, ceil(K/group), group * bits / 8]`; of two 4-bit codes the first is the low half.

    The last block is filled with the code of zero. Codes of 3 bits are written in 4, around the middle of those.
    """
    scheme, (rows, columns) = tensor.scheme, tensor.codes.shape
    groups = tensor.scales.shape[1]
    codes, middle = tensor.codes, 1 << (scheme.storage_bits - 1)
    if tensor.zero_points is None and scheme.bits < scheme.storage_bits:
        codes = codes + np.uint8(middle - (1 << (scheme.bits - 1)))
    if groups * scheme.group_size != columns:
        padded = np.full((rows, groups * scheme.group_size), middle, dtype=np.uint8)
        padded[:, :columns] = codes
        codes = padded
    if scheme.storage_bits == 4:
        codes = _halves(codes)
    return codes.reshape(rows, groups, -1)


def pack_zero_points(tensor: QuantizedTensor) -> NDArray[np.uint8] | None:
    """Zero points `[N, ceil(groups * bits / 8)]`, packed like codes; None for symmetric tensors."""
    zeros = tensor.zero_points
    if zeros is None or tensor.scheme.storage_bits == 8:
        return zeros
    if zeros.shape[1] % 2:
        zeros = np.pad(zeros, ((0, 0), (0, 1)))
    return _halves(zeros)


def _halves(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Two 4-bit codes of each row a byte."""
    return np.bitwise_or(codes[:, 0::2], np.left_shift(codes[:, 1::2], np.uint8(4)), dtype=np.uint8)
