"""Tensors as the arrays that a GGUF file holds, converted a piece at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from edgevlm.errors import CheckpointError

_CHUNK_ELEMENTS = 1 << 22


def gguf_values(tensor: Tensor, dtype: np.dtype[Any], source: str) -> NDArray[Any]:
    """The tensor in `dtype`, of the same shape; `source` names it in errors.

    Raises:
        CheckpointError: a value is not finite, or does not fit.
    """
    flat = tensor.detach().reshape(-1)
    values = np.empty(flat.numel(), dtype)
    for start in range(0, values.size, _CHUNK_ELEMENTS):
        piece = flat[start : start + _CHUNK_ELEMENTS].float().numpy()
        with np.errstate(over="ignore"):
            values[start : start + piece.size] = piece
        if not np.isfinite(values[start : start + piece.size]).all():
            fits = "is not finite" if not np.isfinite(piece).all() else "does not fit float16; use --gguf-type f32"
            raise CheckpointError(f"a weight {fits}", source)
    return values.reshape(tensor.shape)
