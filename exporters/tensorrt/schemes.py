"""How TensorRT stores a tensor of the decoder: symmetric INT4 in whole blocks, INT8 with a scale an output channel.

In: what `edgevlm.quant.schemes.scheme_for` takes. Out: a scheme that TensorRT reads (docs/tensorrt.md).
"""

from __future__ import annotations

from collections.abc import Callable

from edgevlm.quant.schemes import Scheme, TensorRole, scheme_for
from edgevlm.quant.tensor import QuantScheme
from edgevlm.recipe import Precision
from edgevlm.runtimes.build_plan import ComputeType

#: Blocks that TensorRT reads; the first that divides the inputs is taken.
BLOCKS = (128, 64, 32, 16)


def tensorrt_scheme(path: str, role: TensorRole, columns: int, precision: Precision) -> Scheme:
    """How one tensor is stored where float16 is computed; a matrix that no block divides stays in it."""
    chosen = scheme_for(path, role, columns, precision)
    if not isinstance(chosen, QuantScheme):
        return chosen
    if chosen.bits == 8:
        return QuantScheme(8, columns)
    size = next((block for block in BLOCKS if block <= chosen.group_size and columns % block == 0), None)
    return "float16" if size is None else QuantScheme(4, size)


def bfloat16_scheme(path: str, role: TensorRole, columns: int, precision: Precision) -> Scheme:
    """Likewise where bfloat16 is computed: floats come in float32, and are rounded once, when they are written."""
    chosen = tensorrt_scheme(path, role, columns, precision)
    return "float32" if chosen == "float16" else chosen


#: By the type that is computed in.
SCHEMES: dict[ComputeType, Callable[[str, TensorRole, int, Precision], Scheme]] = {
    "float32": tensorrt_scheme,
    "float16": tensorrt_scheme,
    "bfloat16": bfloat16_scheme,
}
