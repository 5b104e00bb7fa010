"""A weight matrix on an integer grid: what an algorithm returns and an exporter lays out.

Algorithms (RTN and others) decide codes, scales and zero points; exporters pack exactly those numbers for their
runtime. Nothing is rounded twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class QuantScheme:
    """How one matrix is quantized along its input channels.

    Attributes:
        bits: 4 or 8.
        group_size: input channels that share a scale; the last group may be shorter.
        symmetric: zero point fixed at 2^(bits-1).
        algorithm: who chooses the codes.
    """

    bits: Literal[4, 8]
    group_size: int
    symmetric: bool = True
    algorithm: Literal["rtn"] = "rtn"


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
