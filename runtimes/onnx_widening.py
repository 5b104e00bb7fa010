"""A graph in bfloat16 as one in float32, in memory, for ONNX Runtime, whose CPU kernels have no bfloat16.

In: an ONNX file. Out: the bytes of the same graph with float32 wherever it says bfloat16 (inputs, outputs, casts,
tensors), and the tensors of other files that are to be given to the session beside it. Weights keep their values, which
are bfloat16's; what is computed from them is not rounded. The file is read as protobuf writes it, field by field, by
the numbers of onnx.proto, since the device has no onnx package; what is not understood is copied as it stands.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import BundleError

_FLOAT, _BFLOAT16 = 1, 16
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
#: Attributes that name a type: of Cast, EyeLike, QuantizeLinear and DequantizeLinear.
_TYPES = (b"to", b"dtype", b"output_dtype")
#: Graphs within graphs; no exporter nests deeper.
_DEEPEST = 8
_MAX_BYTES = 1 << 30
_HINT = "export the bundle again, or copy it again from where it came"

#: Number, wire type and value of a field.
_Field = tuple[int, int, int | bytes]


@dataclass(frozen=True)
class StoredFloats:
    """Where numbers in bfloat16 lie: a file, the first byte, and the shape of the tensor."""

    name: str
    file: Path
    offset: int
    shape: tuple[int, ...]

    def read(self) -> NDArray[np.float32]:
        """The numbers in float32.

        Raises:
            BundleError: the file is too short, or cannot be read.
        """
        count = math.prod(self.shape)
        try:
            values = np.fromfile(self.file, np.uint16, count, offset=self.offset)
        except (OSError, ValueError, OverflowError) as error:
            raise BundleError(f"the tensor {self.name:.80} cannot be read: {error}", str(self.file), _HINT) from error
        if values.size != count:
            raise BundleError(f"the file ends within the tensor {self.name:.80}", str(self.file), _HINT)
        return _float32(values).reshape(self.shape)


def widen(path: Path) -> tuple[bytes, tuple[StoredFloats, ...]]:
    """Read a graph.

    Returns:
        An ONNX model in float32, and the tensors in other files to hand over beside it.

    Raises:
        BundleError: the file is no ONNX model, or a tensor lies elsewhere than in the model's folder.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise BundleError("the graph is too large", str(path), _HINT)
        widening = _Widening(path.parent)
        model = _rewritten(path.read_bytes(), {7: widening.graph})
    except (OSError, ValueError, IndexError) as error:
        raise BundleError(f"the graph cannot be read: {error}", str(path), _HINT) from error
    return model, tuple(widening.stored)


class _Widening:
    """The messages of onnx.proto that hold types, by the numbers of their fields."""

    def __init__(self, folder: Path) -> None:
        self.stored: list[StoredFloats] = []
        self._folder = folder
        self._depth = 0

    def graph(self, data: bytes) -> bytes:
        """GraphProto: nodes, tensors, inputs, outputs and other values."""
        if self._depth > _DEEPEST:
            raise ValueError("graphs lie too deep within graphs")
        self._depth += 1
        values = dict.fromkeys((11, 12, 13), _value)
        result = _rewritten(data, {1: self._node, 5: self._tensor, **values})
        self._depth -= 1
        return result

    def _node(self, data: bytes) -> bytes:
        return _rewritten(data, {5: self._attribute})

    def _attribute(self, data: bytes) -> bytes:
        """A name (1), and an integer (3), a tensor (5) or a graph (6)."""
        names_type = any(number == 1 and value in _TYPES for number, _, value in _fields(data))
        return _rewritten(data, {5: self._tensor, 6: self.graph}, type_field=3 if names_type else None)

    def _tensor(self, data: bytes) -> bytes:
        """TensorProto: shape (1), type (2), name (8), and its numbers, here (9) or in a file (13)."""
        fields = list(_fields(data))
        if (2, _VARINT, _BFLOAT16) not in fields:
            return data
        where = dict(_entry(value) for number, _, value in fields if number == 13 and isinstance(value, bytes))
        if where:
            self.stored.append(self._elsewhere(fields, where))
        elif not any(number == 9 for number, _, _ in fields):
            raise ValueError("a tensor in bfloat16 has no bytes")
        return _rewritten(data, {9: _wide_bytes}, type_field=2)

    def _elsewhere(self, fields: list[_Field], where: dict[str, str]) -> StoredFloats:
        name = b"".join(value for number, _, value in fields if number == 8 and isinstance(value, bytes)).decode()
        location, offset = where.get("location", ""), int(where.get("offset", "0"))
        shape = tuple(size for number, wire, value in fields if number == 1 for size in _sizes(wire, value))
        if not location or location != Path(location).name or location == "..":
            raise ValueError(f"the tensor {name:.80} lies in another folder")
        if offset < 0 or math.prod(shape) > (self._folder / location).stat().st_size:
            raise ValueError(f"the tensor {name:.80} is larger than its file")
        return StoredFloats(name, self._folder / location, offset, shape)


def _value(data: bytes) -> bytes:
    """ValueInfoProto: its type (2), of a tensor (1), whose elements have a type (1)."""

    def tensor(data: bytes) -> bytes:
        return _rewritten(data, {}, type_field=1)

    return _rewritten(data, {2: lambda kind: _rewritten(kind, {1: tensor})})


def _entry(data: int | bytes) -> tuple[str, str]:
    """StringStringEntryProto: key (1) and value (2)."""
    assert isinstance(data, bytes)
    found = {number: value.decode() for number, _, value in _fields(data) if isinstance(value, bytes)}
    return found.get(1, ""), found.get(2, "")


def _sizes(wire: int, value: int | bytes) -> Iterator[int]:
    """A shape's sizes, one a field or many in one."""
    if isinstance(value, int):
        yield value
    elif wire == _BYTES:
        place = 0
        while place < len(value):
            size, place = _varint(value, place)
            yield size


def _wide_bytes(data: bytes) -> bytes:
    return _float32(np.frombuffer(data, np.uint16)).tobytes()


def _float32(values: NDArray[np.uint16]) -> NDArray[np.float32]:
    """bfloat16 is the upper half of float32."""
    return (values.astype(np.uint32) << 16).view(np.float32)


def _rewritten(data: bytes, inner: dict[int, Callable[[bytes], bytes]], *, type_field: int | None = None) -> bytes:
    """A message with some of its inner messages replaced, and bfloat16 in one of its numbers."""
    parts = []
    for number, wire, value in _fields(data):
        parts.append(_number(number << 3 | wire))
        if isinstance(value, int):
            parts.append(_number(_FLOAT if number == type_field and value == _BFLOAT16 else value))
        elif wire == _BYTES:
            content = inner[number](value) if number in inner else value
            parts += [_number(len(content)), content]
        else:
            parts.append(value)
    return b"".join(parts)


def _fields(data: bytes) -> Iterator[_Field]:
    """The fields of a message, as they stand.

    Raises:
        ValueError: these bytes are no message.
        IndexError: they end within a number.
    """
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        wire = key & 7
        if wire == _VARINT:
            value, place = _varint(data, place)
            yield key >> 3, wire, value
            continue
        if wire == _BYTES:
            length, place = _varint(data, place)
        elif wire in (_FIXED64, _FIXED32):
            length = 8 if wire == _FIXED64 else 4
        else:
            raise ValueError(f"this is no ONNX: wire type {wire}")
        if place + length > len(data):
            raise ValueError("it ends within a field")
        yield key >> 3, wire, data[place : place + length]
        place += length


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """A number in groups of seven bits, lowest first, and the place behind it."""
    value = shift = 0
    while True:
        byte = data[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
        shift += 7
        if shift > 63:
            raise ValueError("a number is too long")


def _number(value: int) -> bytes:
    parts = bytearray()
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    parts.append(value)
    return bytes(parts)
