"""Rows of a GGUF's token embedding as float32, looked up on our side.

llama.cpp refuses a batch that mixes tokens and embeddings, and every further batch of a prompt reads all weights once
more. So a prompt of text and image is turned into embeddings here, and runs as one batch. The numbers are those of
llama.cpp's own lookup: its dequantizer is called on the rows needed, straight from the mapped file.
"""

from __future__ import annotations

import ctypes
import mmap
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import EngineError

_TENSOR = b"token_embd.weight"


class _TypeTraits(ctypes.Structure):
    """`ggml_type_traits` of ggml.h."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("block_size", ctypes.c_int64),
        ("block_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
        ("from_float_ref", ctypes.c_void_p),
    )


class _InitParams(ctypes.Structure):
    """`gguf_init_params` of gguf.h."""

    _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p))


class TokenEmbedding:
    """The embedding table of one GGUF, on disk.

    Args:
        path: the file.
        vocab_size, hidden_size: the shape it must have.

    Raises:
        EngineError: it has no such table, another shape, or a type that cannot be read by rows.
    """

    def __init__(self, path: Path, vocab_size: int, hidden_size: int) -> None:
        self.hidden_size = hidden_size
        ggml_type, offset = _find(_ggml(), path, vocab_size, hidden_size)
        traits = _ggml().ggml_get_type_traits(ggml_type).contents
        self._is_float32 = traits.type_name == b"f32"
        if (not self._is_float32 and not traits.to_float) or hidden_size % traits.block_size:
            raise EngineError(f"rows of a {traits.type_name.decode()} embedding cannot be read", str(path))
        self._to_float = traits.to_float
        self._row_bytes = hidden_size // traits.block_size * traits.type_size
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._data = np.frombuffer(self._map, np.uint8, vocab_size * self._row_bytes, offset)

    def rows(self, ids: NDArray[np.int32]) -> NDArray[np.float32]:
        """Embeddings `[L, H]` of token ids `[L]`, each within the vocabulary."""
        packed = self._data.reshape(-1, self._row_bytes)[ids]
        if self._is_float32:
            return packed.view(np.float32)
        rows = np.empty((len(ids), self.hidden_size), np.float32)
        self._to_float(packed.ctypes.data, rows.ctypes.data, rows.size)
        return rows

    def close(self) -> None:
        """Unmap the file."""
        del self._data
        self._map.close()


def _ggml() -> ctypes.CDLL:
    """ggml's base library, which holds the GGUF reader and the dequantizers."""
    import llama_cpp

    folder = Path(llama_cpp.__file__).parent / "lib"
    library = ctypes.CDLL(str(folder / "libggml-base.so"))
    library.ggml_get_type_traits.restype = ctypes.POINTER(_TypeTraits)
    library.gguf_init_from_file.argtypes = [ctypes.c_char_p, _InitParams]
    library.gguf_init_from_file.restype = ctypes.c_void_p
    library.gguf_free.argtypes = [ctypes.c_void_p]
    library.gguf_find_tensor.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    library.gguf_find_tensor.restype = ctypes.c_int64
    library.gguf_get_data_offset.argtypes = [ctypes.c_void_p]
    library.gguf_get_data_offset.restype = ctypes.c_size_t
    for name, result in (
        ("gguf_get_tensor_type", ctypes.c_int),
        ("gguf_get_tensor_offset", ctypes.c_size_t),
        ("gguf_get_tensor_ne", ctypes.POINTER(ctypes.c_int64)),
    ):
        function = getattr(library, name)
        function.argtypes = [ctypes.c_void_p, ctypes.c_int64]
        function.restype = result
    return library


def _find(library: ctypes.CDLL, path: Path, vocab_size: int, hidden_size: int) -> tuple[int, int]:
    """Type and file offset of the table."""
    context = library.gguf_init_from_file(str(path).encode(), _InitParams(no_alloc=True, ctx=None))
    if not context:
        raise EngineError("not a readable GGUF", str(path), "export the bundle again")
    try:
        index = library.gguf_find_tensor(context, _TENSOR)
        if index < 0:
            raise EngineError("the GGUF has no token embedding", str(path), "export the bundle again")
        shape = tuple(library.gguf_get_tensor_ne(context, index)[:2])
        if shape != (hidden_size, vocab_size):
            raise EngineError(
                f"the embedding is {shape[1]} x {shape[0]}, the spec says {vocab_size} x {hidden_size}", str(path)
            )
        offset = library.gguf_get_data_offset(context) + library.gguf_get_tensor_offset(context, index)
        return library.gguf_get_tensor_type(context, index), offset
    finally:
        library.gguf_free(context)
