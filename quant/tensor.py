"""A weight matrix on an integer grid: what an algorithm returns and an exporter lays out.

Algorithms (RTN, GPTQ and others) decide codes, scales and zero points; exporters pack exactly those numbers for their
runtime. Nothing is rounded twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Algorithm: TypeAlias = Literal["rtn", "mse", "gptq", "awq", "awq-gptq", "hqq"]


@dataclass(frozen=True)
class QuantScheme:
    """How one matrix is quantized along its input channels.

    Attributes:
        bits: 3, 4 or 8; runtimes hold codes of 3 bits in 4.
        group_size: input channels that share a scale; the last group may be shorter.
        symmetric: zero point fixed at 2^(bits-1).
        algorithm: who chooses the codes.
        half_scales: scales are numbers that float16 can hold, as GGUF stores them.
    """

    bits: Literal[3, 4, 8]
    group_size: int
    symmetric: bool = True
    algorithm: Algorithm = "rtn"
    half_scales: bool = False

    @property
    def storage_bits(self) -> Literal[4, 8]:
        """Bits that a code takes in a file."""
        return 8 if self.bits == 8 else 4


@dataclass(frozen=True)
class QuantizedTensor:
    """Codes of a matrix `[N, K]` (N outputs, K inputs): w = (code - zero_point) * scale.

    Attributes:
        codes: uint8 `[N, K]`, values 0 .. 2^bits - 1, one code a byte.
        scales: float32 `[N, ceil(K / group_size)]`.
        zero_points: uint8 `[N, ceil(K / group_size)]`, or None for the symmetric 2^(bits-1).
        scheme: the scheme it was made with.
    """

    codes: NDArray[np.uint8]
    scales: NDArray[np.float32]
    zero_points: NDArray[np.uint8] | None
    scheme: QuantScheme

    def dequantize(self) -> NDArray[np.float32]:
        """The matrix `[N, K]` in float32 that a runtime computes with."""
        group, columns = self.scheme.group_size, self.codes.shape[1]
        zero: NDArray[np.float32] | float = float(1 << (self.scheme.bits - 1))
        if self.zero_points is not None:
            zero = np.repeat(self.zero_points.astype(np.float32), group, axis=1)[:, :columns]
        scale = np.repeat(self.scales, group, axis=1)[:, :columns]
        return (self.codes.astype(np.float32) - zero) * scale


def stack(tensors: Sequence[QuantizedTensor]) -> QuantizedTensor:
    """Matrices of one scheme, one below the other: `[N1 + N2 + ..., K]`.

    Raises:
        ValueError: the schemes differ.
    """
    first = tensors[0]
    if any(tensor.scheme != first.scheme for tensor in tensors):
        raise ValueError("matrices of different schemes cannot be stacked")
    zeros = [tensor.zero_points for tensor in tensors if tensor.zero_points is not None]
    return QuantizedTensor(
        np.concatenate([tensor.codes for tensor in tensors]),
        np.concatenate([tensor.scales for tensor in tensors]),
        np.concatenate(zeros) if zeros else None,
        first.scheme,
    )
