"""The patterns that the table of TensorRT's parsers names, each a question to one node.

A pattern says whether a node has it. Types are those the graph states: of weights, inputs, outputs and casts.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from onnx import TensorProto

from edgevlm.exporters.lint.graphs import Node

#: Places of optional inputs, by the ONNX operator's definition.
_ZERO_POINT = 2
_PAST_KEY, _PAST_VALUE, _LENGTHS = 4, 5, 6
_TOP_K_LIMIT = 3840
_LINEAR = ("QuantizeLinear", "DequantizeLinear")
_UNSIGNED = (TensorProto.UINT8, TensorProto.UINT16, TensorProto.UINT4)
_FLOAT8 = (
    *(TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT8E4M3FNUZ),
    *(TensorProto.FLOAT8E5M2, TensorProto.FLOAT8E5M2FNUZ),
)


def shifted_zero_point(node: Node) -> bool:
    """A constant zero point that is not 0."""
    value = node.constant(_ZERO_POINT) if node.op in _LINEAR else None
    return value is not None and bool(np.any(value.astype(np.float32) != 0))


def computed_zero_point(node: Node) -> bool:
    """A zero point that no constant holds."""
    return node.op in _LINEAR and node.has_input(_ZERO_POINT) and not node.is_constant(_ZERO_POINT)


def unsigned_codes(node: Node) -> bool:
    """Quantized numbers without sign: a zero point says of which type they are, else ONNX takes UINT8."""
    if node.op == "QuantizeLinear" and not node.has_input(_ZERO_POINT):
        return node.attributes.get("output_dtype", TensorProto.UINT8) in _UNSIGNED
    codes = node.types[0] if node.op == "DequantizeLinear" else 0
    point = node.types[_ZERO_POINT] if len(node.types) > _ZERO_POINT else 0
    return node.op in _LINEAR and (codes in _UNSIGNED or point in _UNSIGNED)


def unsigned_weights(node: Node) -> bool:
    """A weight of type UINT4."""
    return any(kind == TensorProto.UINT4 and node.is_constant(index) for index, kind in enumerate(node.types))


def int4_activations(node: Node) -> bool:
    """Rounding to INT4 at run time."""
    return (
        node.op == "QuantizeLinear"
        and not node.is_constant(0)
        and (
            TensorProto.INT4 in node.types[_ZERO_POINT : _ZERO_POINT + 1]
            or node.attributes.get("output_dtype") == TensorProto.INT4
        )
    )


def activations_per_channel(node: Node) -> bool:
    """Rounding to INT8 at run time with more than one scale."""
    shape = node.shape(1) if node.op == "QuantizeLinear" and not node.is_constant(0) else None
    return shape is not None and int(np.prod(shape)) > 1 and not _is_float_code(node)


def _is_float_code(node: Node) -> bool:
    return any(kind in (*_FLOAT8, TensorProto.FLOAT4E2M1) for kind in node.types[_ZERO_POINT:])


def int8_scales(node: Node) -> bool:
    """INT8 with a constant scale that is not above 0; INT4 has its scales in blocks."""
    value = node.constant(1) if node.op in _LINEAR and _blocks(node) == 0 else None
    return value is not None and bool(np.any(value.astype(np.float32) <= 0))


def block_scales(node: Node) -> bool:
    """Blocks with a constant scale that is not above 0."""
    value = node.constant(1) if node.op in _LINEAR and _blocks(node) > 0 else None
    return value is not None and bool(np.any(value.astype(np.float32) <= 0))


def int8_blocks(node: Node) -> bool:
    """INT8 with a scale for each block."""
    return node.op in _LINEAR and _blocks(node) > 0 and TensorProto.INT8 in (node.types[0], *node.types[_ZERO_POINT:])


def block_axis(node: Node) -> bool:
    """Blocks along another axis than the last two."""
    rank = len(node.shape(1) or ())
    axis = int(node.attributes.get("axis", 1))
    return node.op in _LINEAR and _blocks(node) > 0 and rank > 0 and axis % rank < rank - 2


def _blocks(node: Node) -> int:
    return int(node.attributes.get("block_size", 0))


def attention_with_cache(node: Node) -> bool:
    """ONNX attention that concatenates its cache itself."""
    more = any(node.outputs[1:])
    return _is_attention(node) and (more or node.has_input(_PAST_KEY) or node.has_input(_PAST_VALUE))


def attention_lengths(node: Node) -> bool:
    """ONNX attention that is told how many keys are no padding."""
    return _is_attention(node) and node.has_input(_LENGTHS)


def attention_softcap(node: Node) -> bool:
    """ONNX attention with capped scores."""
    return _is_attention(node) and float(node.attributes.get("softcap", 0.0)) != 0.0


def attention_flat_heads(node: Node) -> bool:
    """ONNX attention that is to split the heads itself."""
    return _is_attention(node) and "q_num_heads" in node.attributes


def _is_attention(node: Node) -> bool:
    return node.op == "Attention" and node.domain == ""


def scatter_axis(node: Node) -> bool:
    """TensorScatter along another axis than the second to last of `[B, heads, S, D]`."""
    return node.op == "TensorScatter" and node.attributes.get("axis", -2) not in (-2, 2)


def long_top_k(node: Node) -> bool:
    """Top-k of more than the kernel holds."""
    value = node.constant(1) if node.op == "TopK" else None
    return value is not None and bool(np.any(value >= _TOP_K_LIMIT))


def unsorted_top_k(node: Node) -> bool:
    """Top-k in any order."""
    return node.op == "TopK" and node.attributes.get("sorted", 1) != 1


def computed_top_k(node: Node) -> bool:
    """Top-k of a number that is computed."""
    return node.op == "TopK" and not node.is_constant(1)


def scatter_reduction(node: Node) -> bool:
    """ScatterND that adds, or multiplies."""
    return node.op == "ScatterND" and node.attributes.get("reduction", b"none") != b"none"


def reduced_axes(node: Node) -> bool:
    """A reduction over axes that are computed."""
    return node.op.startswith("Reduce") and node.has_input(1) and not node.is_constant(1)


def more_norm_outputs(node: Node) -> bool:
    """A LayerNormalization that returns its mean or deviation."""
    return node.op == "LayerNormalization" and any(node.outputs[1:])


def pool_indices(node: Node) -> bool:
    """A MaxPool that returns where its maxima were."""
    return node.op == "MaxPool" and any(node.outputs[1:])


def antialiased_resize(node: Node) -> bool:
    """Resize with a filter."""
    return node.op == "Resize" and node.attributes.get("antialias", 0) != 0


def einsum_ellipsis(node: Node) -> bool:
    """Einsum over axes that are not named."""
    return node.op == "Einsum" and b"..." in node.attributes.get("equation", b"")


def double_numbers(node: Node) -> bool:
    """float64 among a node's inputs."""
    return TensorProto.DOUBLE in node.types


def strings_or_complex(node: Node) -> bool:
    """Strings or complex numbers among a node's inputs."""
    return any(kind in (TensorProto.STRING, TensorProto.COMPLEX64, TensorProto.COMPLEX128) for kind in node.types)


def bfloat16(node: Node) -> bool:
    """bfloat16 among a node's inputs, or what it casts to."""
    return _uses(node, TensorProto.BFLOAT16)


def float8(node: Node) -> bool:
    """FP8 among a node's inputs, or what it casts to."""
    return _uses(node, *_FLOAT8)


def float4(node: Node) -> bool:
    """FP4 among a node's inputs, or what it casts to."""
    return _uses(node, TensorProto.FLOAT4E2M1)


def _uses(node: Node, *kinds: int) -> bool:
    return any(kind in kinds for kind in (*node.types, node.attributes.get("to"), node.attributes.get("output_dtype")))


PATTERNS: dict[str, Callable[[Node], bool]] = {
    pattern.__name__: pattern
    for pattern in (
        *(shifted_zero_point, computed_zero_point, unsigned_codes, unsigned_weights, int4_activations),
        *(activations_per_channel, int8_scales, block_scales, int8_blocks, block_axis),
        *(attention_with_cache, attention_lengths, attention_softcap, attention_flat_heads, scatter_axis),
        *(long_top_k, unsorted_top_k, computed_top_k, scatter_reduction, reduced_axes),
        *(more_norm_outputs, pool_indices, antialiased_resize, einsum_ellipsis),
        *(double_numbers, strings_or_complex, bfloat16, float8, float4),
    )
}
