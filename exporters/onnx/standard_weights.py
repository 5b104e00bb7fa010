"""Weights in ONNX's own operators: float matrices, and symmetric codes behind a DequantizeLinear.

In: a `StoredMatrix`. Out: names of values in a graph, in its compute type. INT4 has blocks along the inputs, INT8 one
scale an output channel; zero points are absent, since TensorRT reads symmetric codes alone.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray
from onnx import helper

from edgevlm.errors import UnsupportedError
from edgevlm.exporters.onnx.external import ExternalData, StoredTensor
from edgevlm.exporters.onnx.graph import FLOAT, FLOAT_TYPES, INT4, INT64, Graph
from edgevlm.exporters.onnx.table import StoredTable
from edgevlm.quant.schemes import StoredMatrix
from edgevlm.quant.tensor import QuantizedTensor, QuantScheme
from edgevlm.runtimes.build_plan import ComputeType

#: The smallest number above 0 in float16.
_LEAST_SCALE = np.float32(2**-24)
#: The first opset with four bits and with blocks.
_BLOCKS_OPSET = 21


def numpy_dtype(compute: ComputeType) -> np.dtype[np.floating]:
    """The type as NumPy knows it; bfloat16 is one that onnx brings."""
    dtype: np.dtype[np.floating] = helper.tensor_dtype_to_np_dtype(FLOAT_TYPES[compute])
    return dtype


def matrix(graph: Graph, stored: StoredMatrix, name: str, dtype: np.dtype[np.floating]) -> str:
    """A matrix `[N, K]` as the right factor `[K, N]` of a product.

    Raises:
        UnsupportedError: its codes have zero points, or are INT8 in groups.
    """
    if not isinstance(stored, QuantizedTensor):
        return graph.weight(name, np.ascontiguousarray(_narrowed(stored, dtype).T))
    codes, scales = _symmetric(stored, name)
    tensors = _append(graph.data, np.ascontiguousarray(codes.T), stored.scheme)
    graph.weight_bytes += tensors.length
    graph.stored(f"{name}.codes", tensors)
    graph.weight(f"{name}.scales", np.ascontiguousarray(scales.T.astype(dtype)))
    return _widened(graph, name, stored.scheme, inputs_axis=0)


def write_table(stored: StoredMatrix, data: ExternalData, dtype: np.dtype[np.floating]) -> StoredTable:
    """Append an embedding table `[V, H]`.

    Raises:
        UnsupportedError: its codes have zero points, or are INT8 in groups.
    """
    if not isinstance(stored, QuantizedTensor):
        rows, columns = stored.shape
        return StoredTable(rows, columns, data.append(_narrowed(stored, dtype)))
    rows, columns = stored.codes.shape
    codes, scales = _symmetric(stored, "embed_tokens.weight")
    return StoredTable(
        rows, columns, _append(data, codes, stored.scheme), stored.scheme, data.append(scales.astype(dtype))
    )


def table(graph: Graph, stored: StoredTable, name: str) -> str:
    """A table that was written before, `[V, H]` in floats."""
    if stored.scheme is None:
        return graph.stored(name, stored.data)
    assert stored.scales is not None
    graph.stored(f"{name}.codes", stored.data)
    graph.stored(f"{name}.scales", stored.scales)
    return _widened(graph, name, stored.scheme, inputs_axis=1)


def build_embedding(graph: Graph, stored: StoredTable, image_token_id: int) -> None:
    """Fill `graph` with the lookup: `input_ids` int64 `[1, L]` to `inputs_embeds` float32 `[1, L, H]`."""
    ids = graph.input("input_ids", INT64, [1, "sequence_length"])
    if image_token_id >= stored.rows:
        ids = graph.op("Min", [ids, graph.constant("last_row", np.array(stored.rows - 1))], "rows")
    narrow = graph.op("Gather", [table(graph, stored, "embed_tokens.weight"), ids], "rows.narrow", axis=0)
    graph.op("Cast", [narrow], "inputs_embeds", to=FLOAT)
    graph.output("inputs_embeds", FLOAT, [1, "sequence_length", stored.columns])


def _narrowed(values: NDArray[np.floating], dtype: np.dtype[np.floating]) -> NDArray[np.floating]:
    with np.errstate(over="ignore"):
        narrow = values.astype(dtype)
    if not np.isfinite(narrow).all():
        raise ValueError(f"the weight holds a value that {dtype} cannot")
    return narrow


def _symmetric(stored: QuantizedTensor, name: str) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Signed codes `[N, K]`, and scales `[N, groups]`, or `[N]` for one an output channel."""
    scheme, (_, columns) = stored.scheme, stored.codes.shape
    if stored.zero_points is not None:
        raise UnsupportedError("the codes have zero points, and TensorRT reads symmetric ones alone", name, _HINT)
    if scheme.bits == 8 and scheme.group_size < columns:
        what = "TensorRT reads INT8 weights with a scale an output channel, not one a group"
        raise UnsupportedError(what, name, "leave the pass quantize out and use --precision int8, or choose int4")
    if columns % scheme.group_size and scheme.bits != 8:
        what = f"TensorRT reads whole groups, and {scheme.group_size} does not divide {columns} inputs"
        raise UnsupportedError(what, name, "choose another group size")
    codes = (stored.codes.astype(np.int16) - (1 << (scheme.bits - 1))).astype(np.int8)
    codes, scales = _positive(codes, stored.scales, scheme)
    return codes, scales[:, 0] if scheme.bits == 8 else scales


def _positive(
    codes: NDArray[np.int8], scales: NDArray[np.float32], scheme: QuantScheme
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Codes with scales above 0, which TensorRT demands.

    Negative scales are mirrored, and the one code without a mirror image becomes its neighbour: of a block the largest
    weight changes by one step. In blocks of 32 and more that is less error than a grid without that code would make.
    """
    largest = (1 << (scheme.bits - 1)) - 1
    negative = np.repeat(scales < 0, scheme.group_size, axis=1)[:, : codes.shape[1]]
    mirrored = np.where(negative, -codes.astype(np.int16), codes).clip(max=largest).astype(np.int8)
    return mirrored, np.maximum(np.abs(scales), _LEAST_SCALE)


_HINT = "quantize with symmetric true"


def _append(data: ExternalData, codes: NDArray[np.int8], scheme: QuantScheme) -> StoredTensor:
    """Signed codes; of two 4-bit codes in a byte the first is the low half."""
    if scheme.bits == 8:
        return data.append(codes)
    pairs = codes.reshape(-1, 2).view(np.uint8)
    stored = data.append((pairs[:, 0] & 15) | (pairs[:, 1] << 4))
    return dataclasses.replace(stored, data_type=INT4, shape=codes.shape)


def _widened(graph: Graph, name: str, scheme: QuantScheme, *, inputs_axis: int) -> str:
    """Codes and scales as a float matrix; `inputs_axis` is the axis of its inputs."""
    inputs = [f"{name}.codes", f"{name}.scales"]
    if scheme.bits == 8:
        return graph.op("DequantizeLinear", inputs, name, axis=1 - inputs_axis)
    graph.opset = max(graph.opset, _BLOCKS_OPSET)
    return graph.op("DequantizeLinear", inputs, name, axis=inputs_axis, block_size=scheme.group_size)
