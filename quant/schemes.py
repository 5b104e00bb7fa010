"""Which tensor gets how many bits: the one function that decides.

In: a tensor's path, its role and width, and the precision the user asked for. Out: a `QuantScheme`, or the float dtype
it is stored in. Algorithms and mixed-precision policies plug in here; exporters only lay out what comes back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from edgevlm.models.qformer import QFormerProjector
from edgevlm.models.vlm import VisionModel
from edgevlm.quant import hqq, mse, rtn
from edgevlm.quant.tensor import Algorithm, QuantizedTensor, QuantScheme
from edgevlm.recipe import Precision

TensorRole = Literal["linear", "embedding", "head", "norm", "bias"]
FloatType = Literal["float32", "float16"]
Scheme: TypeAlias = QuantScheme | FloatType

#: Algorithms that need nothing but the weight.
DATA_FREE: dict[Algorithm, Callable[[Tensor, QuantScheme], QuantizedTensor]] = {
    "rtn": rtn.quantize,
    "mse": mse.quantize,
    "hqq": hqq.quantize,
}

#: A matrix as an exporter lays it out: quantized, or a float array `[N, K]`.
StoredMatrix: TypeAlias = "QuantizedTensor | np.ndarray[tuple[int, ...], np.dtype[np.floating]]"


def group_size(columns: int) -> int:
    """Inputs that share a scale in a matrix of `columns` inputs.

    128 is the fastest size on CPUs (prefill 1.2 to 1.35 times that of 32) and costs 0.25 bits a weight. Two things ask
    for less: a width that 128 does not divide would pad every row, and a narrow matrix has few groups a row, so that
    the errors of its outputs average out less, while its scales weigh next to nothing.
    """
    if columns < 768:
        return 32
    return next((size for size in (128, 64) if columns % size == 0), 32)


def scheme_for(path: str, role: TensorRole, columns: int, precision: Precision) -> Scheme:
    """How one tensor is stored.

    Args:
        path: the tensor's name in the IR, such as `layers.3.mlp.down_proj.weight`.
        role: what it is for. Norms and biases stay in float32: they are few, and they steer everything.
        columns: input channels (K) of a matrix.
        precision: what the user asked for.
    """
    del path  # mixed-precision policies read it
    if precision == "fp32" or role in ("norm", "bias"):
        return "float32"
    if precision == "fp16":
        return "float16"
    return QuantScheme(bits=4 if precision == "int4" else 8, group_size=group_size(columns))


def store(weight: Tensor, scheme: Scheme) -> StoredMatrix:
    """The matrix `[N, K]` on its grid, or as a float array.

    Raises:
        ValueError: a value is not finite, or too large for float16.
    """
    if isinstance(scheme, QuantScheme):
        return DATA_FREE[scheme.algorithm](weight, scheme)
    array = weight.detach().to(getattr(torch, scheme)).contiguous().numpy()
    if scheme == "float16" and not np.isfinite(array).all():
        raise ValueError("the weight holds a value that float16 cannot")
    return array


def half_prefixes(vision: VisionModel) -> tuple[str, ...]:
    """How names of weights begin that are stored in float16 where the rest of the tower gets narrower.

    A Q-Former's queries are constants, and so is what its first layer makes of them before it looks at the image. Where
    the weights of that part are integers that are widened in the graph, OpenVINO 2026.4 writes into its result, so that
    each image sees what the one before left there.
    """
    if not isinstance(vision.projector, QFormerProjector):
        return ()
    first = "projector.layers.0"
    return "projector.queries", f"{first}.self_attention.", f"{first}.cross_attention.q_proj."


def vision_scheme(shape: tuple[int, ...], precision: Precision) -> Scheme:
    """How a tensor of the vision tower is stored: convolution kernels and matrices narrow, all else in float32.

    Biases, norms and layer scales (which may be far below float16's normal range) are too few to matter. int8 and int4
    are weight-only. int8 has one scale an output channel. int4 has groups of inputs, as the decoder has, and ranges
    shrunk to the least squared error, since nothing but storage gets narrow; what has no such groups (kernels of more
    than one pixel, odd widths) is stored in int8.
    """
    if precision == "fp32" or len(shape) not in (2, 4):
        return "float32"
    if precision == "fp16":
        return "float16"
    inputs, outputs = (shape[1], shape[0]) if len(shape) == 4 else shape
    size = next((size for size in (group_size(inputs), 32, 16) if inputs % size == 0), 0)
    if precision == "int4" and size and not outputs % 2 and shape[2:] in ((), (1, 1)):
        return QuantScheme(bits=4, group_size=size, algorithm="mse")
    return QuantScheme(bits=8, group_size=int(np.prod(shape)))
