"""How TensorRT stores a tensor of the decoder: symmetric INT4 in whole blocks, INT8 with a scale an output channel.

In: what `edgevlm.quant.schemes.scheme_for` takes. Out: a scheme that TensorRT reads (docs/tensorrt.md).
"""

from __future__ import annotations

from edgevlm.quant.schemes import Scheme, TensorRole, scheme_for
from edgevlm.quant.tensor import QuantScheme
from edgevlm.recipe import Precision

#: Blocks that TensorRT reads; the first that divides the inputs is taken.
BLOCKS = (128, 64, 32, 16)


def tensorrt_scheme(path: str, role: TensorRole, columns: int, precision: Precision) -> Scheme:
    """How one tensor is stored; a matrix that no block divides stays in float16."""
    chosen = scheme_for(path, role, columns, precision)
    if not isinstance(chosen, QuantScheme):
        return chosen
    if chosen.bits == 8:
        return QuantScheme(8, columns)
    size = next((block for block in BLOCKS if block <= chosen.group_size and columns % block == 0), None)
    return "float16" if size is None else QuantScheme(4, size)
