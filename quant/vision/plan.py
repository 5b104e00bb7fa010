"""What static quantization of a vision tower decides, by the names of its layers: numbers, and how to round with them.

Codes are int8 and symmetric, zero point 0, as TensorRT asks for: weights with a scale an output channel, activations
with one scale a tensor. w = code * scale, code in -127 .. 127; x = code * scale, code in -128 .. 127.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LARGEST = 127
#: So many layers are named to people, the others counted.
_NAMED = 4


@dataclass(frozen=True)
class StaticLayer:
    """A linear layer or convolution that runs on int8.

    Attributes:
        input_scale: of its input, a float32 number above 0.
        factors: float32 `[C]`: its input channels are divided by them, its weights multiplied (SmoothQuant, arXiv
            2211.10438); None for 1.
        output_scale: of a convolution's output, which is rounded, too; None for a linear layer, whose output is float.
    """

    input_scale: float
    factors: NDArray[np.float32] | None = None
    output_scale: float | None = None


@dataclass(frozen=True)
class StaticPlan:
    """What is done to a vision tower.

    Attributes:
        layers: those on int8, by the name of the module; all others stay in float.
        divided: what makes the inputs of smoothed layers: the parameter's name -> float32 divisors of its rows (its
            first axis).
        kept: layers that were measured and stay in float for what they cost the features.
        error: ||f - g|| / ||f|| of the image features f in float and g so quantized, the largest of those measured.
    """

    layers: Mapping[str, StaticLayer]
    divided: Mapping[str, NDArray[np.float32]]
    kept: tuple[str, ...]
    error: float

    def __str__(self) -> str:
        """What people should know of it, in one line."""
        more = len(self.kept) - _NAMED
        shown = ", ".join(self.kept[:_NAMED]) + (f" and {more} more" if more > 0 else "")
        kept = f"; {len(self.kept)} stay in float: {shown}" if self.kept else ""
        off = f"features of calibration images are {self.error:.1%} off"
        return f"{len(self.layers)} layers of the vision tower run on int8, {off}{kept}"


def quantize_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Codes int8 of the weight's shape and scales float32 `[N]`, one for each row of the first axis.

    A row of zeros gets the scale 1, since 0 is none for TensorRT.

    Raises:
        ValueError: a weight is not finite.
    """
    rows = weight.detach().float().reshape(len(weight), -1)
    if not bool(torch.isfinite(rows).all()):
        raise ValueError("the weight holds a value that is not finite")
    scale = rows.abs().amax(dim=1) / LARGEST
    scale = torch.where(scale < torch.finfo(torch.float32).tiny, 1, scale)
    codes = (rows / scale[:, None]).round_().clamp_(-LARGEST, LARGEST)
    return codes.to(torch.int8).view(weight.shape), scale


def rounded_weight(weight: Tensor) -> Tensor:
    """The weight that `quantize_weight` leaves, in float32."""
    codes, scale = quantize_weight(weight)
    return codes * scale.view(-1, *[1] * (weight.ndim - 1))


def rounded_values(x: Tensor, scale: float) -> Tensor:
    """Activations as QuantizeLinear and DequantizeLinear leave them, in float32."""
    return (x / scale).round_().clamp_(-LARGEST - 1, LARGEST).mul_(scale)
