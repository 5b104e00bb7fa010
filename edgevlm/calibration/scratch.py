"""Room for activations and changed weights: memory up to a ceiling, beyond it files that the system may page out.

In: shapes. Out: tensors that are used like any other. A file has no name once it is mapped, so that nothing is left
behind however the process ends; it lies in the folder for temporary files (`TMPDIR`).
"""

from __future__ import annotations

import math
import os
import tempfile

import torch
from torch import Tensor

from edgevlm.errors import InputError

#: Smaller tensors are not worth a file each.
_SMALLEST_FILE = 1 << 16


class Scratch:
    """Counts what it gave; what its users dropped is not counted back."""

    def __init__(self, ceiling: int) -> None:
        """Room in memory for `ceiling` bytes."""
        self._left = ceiling

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor of any content.

        Raises:
            InputError: there is no room on the disk either.
        """
        size = math.prod(shape) * dtype.itemsize
        if size <= self._left or size < _SMALLEST_FILE:
            self._left -= size
            return torch.empty(shape, dtype=dtype)
        return _mapped(shape, dtype, size)

    def keep(self, tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """A copy, in `dtype` where one is given."""
        return self.empty(tuple(tensor.shape), dtype or tensor.dtype).copy_(tensor)


def _mapped(shape: tuple[int, ...], dtype: torch.dtype, size: int) -> Tensor:
    try:
        with tempfile.NamedTemporaryFile(prefix="edgevlm-scratch-") as file:
            # Without its blocks a full disk would show as a signal in the middle of a computation.
            os.posix_fallocate(file.fileno(), 0, size)
            flat = torch.from_file(file.name, shared=True, size=math.prod(shape), dtype=dtype)
    except OSError as error:
        raise InputError(
            f"no room for {size >> 20} MiB of calibration data: {error.strerror}",
            tempfile.gettempdir(),
            "set TMPDIR to a larger disk, or calibrate with fewer samples",
        ) from error
    return flat.view(shape)
