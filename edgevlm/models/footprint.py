"""Give memory back to the system that is not needed for now.

Memory-mapped weights that were read stay resident, and freed heap stays with the process, until somebody asks. An
exporter lets go of what it has written, and before a child process loads the exported bundle the parent lets go of all:
mapped weights are read again where they are needed again. Where the system knows no such request, nothing happens.
"""

from __future__ import annotations

import ctypes
import mmap

from torch import Tensor, nn

from edgevlm.heap import trim_heap

#: linux/mman.h: reclaim these pages. Unlike MADV_DONTNEED it never discards data that exist nowhere else.
_MADV_PAGEOUT = 21


def release(*parts: nn.Module | Tensor) -> None:
    """Let go of the mapped pages of modules and tensors and of the freed heap; their values stay as they are."""
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "madvise"):
        libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        for part in parts:
            for tensor in [part] if isinstance(part, Tensor) else part.state_dict().values():
                _page_out(libc, tensor)
    trim_heap()


def _page_out(libc: ctypes.CDLL, tensor: Tensor) -> None:
    start = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    length = tensor.data_ptr() + tensor.nbytes - start
    if length >= mmap.PAGESIZE:
        libc.madvise(start, length - length % mmap.PAGESIZE, _MADV_PAGEOUT)
