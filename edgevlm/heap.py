"""Give freed memory back to the system.

The C library keeps what a program frees, in case it asks again; after a large model was unloaded that is gigabytes that
nobody else can have. Where the library (glibc) has a request for it, it is made; elsewhere nothing happens.
"""

from __future__ import annotations

import ctypes
import sys


def trim_heap() -> None:
    """Return the freed heap of this process to the system."""
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
