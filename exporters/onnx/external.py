"""External data: the big tensors of ONNX graphs, streamed into a file beside them.

Tensors are appended one at a time, so that an export never holds a second copy of the model. What `append` returns can
be referred to by any number of graphs in the same folder, which is how a tied embedding and head are stored once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

#: Runtimes map the file and want vectors aligned; large tensors start on a page so that their pages are theirs alone.
_ALIGNMENT = 64
_PAGE = 4096
_PAGE_FROM_BYTES = 1 << 16


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor's bytes are: file name (in the graph's folder), offset and length in bytes."""

    location: str
    offset: int
    length: int
    data_type: int
    shape: tuple[int, ...]

    def proto(self, name: str, shape: tuple[int, ...] | None = None) -> onnx.TensorProto:
        """An initializer that refers to the bytes, in another shape of the same size if asked for."""
        proto = onnx.TensorProto(name=name, data_type=self.data_type, dims=shape or self.shape)
        proto.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", self.location), ("offset", self.offset), ("length", self.length)):
            proto.external_data.add(key=key, value=str(value))
        return proto


class ExternalData:
    """A data file under construction; a context manager."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("wb")

    def __enter__(self) -> ExternalData:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def append(self, array: NDArray[Any]) -> StoredTensor:
        """Write an array (little-endian, row-major).

        Raises:
            OSError: the disk is full or the file cannot be written.
        """
        array = np.ascontiguousarray(array)
        alignment = _PAGE if array.nbytes >= _PAGE_FROM_BYTES else _ALIGNMENT
        self._file.write(b"\0" * (-self._file.tell() % alignment))
        offset = self._file.tell()
        # As bytes: Python has no buffer of bfloat16.
        self._file.write(array.reshape(-1).view(np.uint8).data)
        data_type = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        return StoredTensor(self.path.name, offset, array.nbytes, data_type, array.shape)
