"""A vision graph that computes in float16 or bfloat16, each value of one type, as TensorRT builds it strongly typed.

In: a traced graph in float32. Out: the same graph with 16-bit values and weights between float32 inputs and outputs.
What only chooses (scores that lead to indices and to nothing else) and what has a graph inside (loops) stays in
float32, so that rounding does not change which tokens are kept; a Cast stands at each border.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgevlm.runtimes.build_plan import ComputeType

_SINGLE = ir.DataType.FLOAT
#: By the type that is computed in.
HALVES: dict[ComputeType, ir.DataType] = {"float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16}
_LARGEST = {ir.DataType.FLOAT16: 65504.0, ir.DataType.BFLOAT16: float.fromhex("0x1.fep127")}
#: Operators that make no floats of any, and choose nothing.
_ANY_FLOAT = ("QuantizeLinear", "Shape", "Size")
#: Attributes that name the type of a result.
_TYPES = {"Cast": "to", "EyeLike": "dtype"}


def to_half(model: ir.Model, half: ir.DataType) -> None:
    """Alter a traced graph. Weights are converted when they are read; beyond `half` they become its largest number.

    Raises:
        ValueError: when a weight is read that is no number.
    """
    graph = model.graph
    _type_pairs(graph)
    wide = _staying_wide(graph)
    values = [*graph.inputs, *(value for node in graph for value in node.outputs)]
    floats = [value for value in values if value.dtype == _SINGLE]
    for value in floats:
        maker = value.producer()
        if maker is not None and maker not in wide:
            value.dtype = half
            _retype(maker, half)
    for value in list(graph.initializers.values()):
        if value.dtype == _SINGLE:
            _give_half(graph, value, wide, half)
    for value in floats:
        _cast_at_border(graph, value, wide, half)
    for place, value in enumerate(graph.outputs):
        if value.dtype == half:
            name, value.name = value.name, f"{value.name}.half"
            cast = _cast(graph, value, _SINGLE)
            cast.name = name
            graph.outputs[place] = cast


def _type_pairs(graph: ir.Graph) -> None:
    """Give QuantizeLinear and DequantizeLinear, which were put into the trace without types, what they make."""
    kinds = {"QuantizeLinear": ir.DataType.INT8, "DequantizeLinear": _SINGLE}
    for node in graph:
        if node.op_type in kinds and node.outputs[0].dtype is None:
            node.outputs[0].type = ir.TensorType(kinds[node.op_type])


def _staying_wide(graph: ir.Graph) -> set[ir.Node]:
    """Nodes that only choose, and nodes with a graph inside."""
    wide: set[ir.Node] = set()
    for node in reversed(graph):
        inside = any(attribute.type == ir.AttributeType.GRAPH for attribute in node.attributes.values())
        floats = [value for value in node.outputs if value.dtype == _SINGLE]
        chooses = not any(value.is_graph_output() for value in floats) and all(
            user in wide for value in floats for user in _users(graph, value)
        )
        if inside or (chooses and node.op_type not in _ANY_FLOAT):
            wide.add(node)
    return wide


def _users(graph: ir.Graph, value: ir.Value) -> Iterable[ir.Node]:
    """The nodes of `graph` that read a value, themselves or in a graph inside of them."""
    for node, _ in value.uses():
        while node.graph is not graph:
            assert isinstance(node.graph, ir.Graph)
            (node,) = (
                each
                for each in graph.all_nodes()
                if any(attribute.value is node.graph for attribute in each.attributes.values())
            )
        yield node


def _retype(node: ir.Node, half: ir.DataType) -> None:
    """Let a node that names the type of its result make `half`."""
    if (name := _TYPES.get(node.op_type)) is not None:
        node.attributes[name] = ir.AttrInt64(name, half)
    elif node.op_type == "ConstantOfShape" and "value" in node.attributes:
        value = node.attributes["value"].as_tensor().numpy().astype(half.numpy())
        node.attributes["value"] = ir.AttrTensor("value", ir.tensor(value))


def _give_half(graph: ir.Graph, value: ir.Value, wide: set[ir.Node], half: ir.DataType) -> None:
    """Let users that compute in 16 bits read a converted initializer: a copy, where others read it, too."""
    uses = list(value.uses())
    narrow = [(node, place) for node, place in uses if node.graph is graph and node not in wide]
    if not narrow:
        return
    assert value.name is not None and value.const_value is not None
    original, name = value.const_value, value.name
    if len(narrow) == len(uses) and not value.is_graph_output():
        value.const_value, value.dtype = _halved(original, name, half), half
        return
    name = f"{name}.half"
    tensor = _halved(original, name, half)
    copy = ir.Value(name=name, type=ir.TensorType(half), shape=value.shape, const_value=tensor)
    graph.register_initializer(copy)
    for node, place in narrow:
        node.replace_input_with(place, copy)


def _halved(tensor: ir.TensorProtocol, name: str, half: ir.DataType) -> ir.LazyTensor:
    dtype = half.numpy()
    largest = _LARGEST[half]

    def read() -> ir.Tensor:
        values: NDArray[np.float32] = tensor.numpy()
        if np.isnan(values).any():
            raise ValueError(f"{name} holds a value that is no number")
        return ir.tensor(np.clip(values, -largest, largest).astype(dtype), name=name)

    return ir.LazyTensor(read, half, tensor.shape, name=name)


def _cast_at_border(graph: ir.Graph, value: ir.Value, wide: set[ir.Node], half: ir.DataType) -> None:
    """Let users that compute in the other type read a cast."""
    users = [(node, place) for node, place in value.uses()]
    outside = [use for use in users if (use[0] not in wide and use[0].graph is graph) != (value.dtype == half)]
    if not outside:
        return
    cast = _cast(graph, value, _SINGLE if value.dtype == half else half)
    for node, place in outside:
        node.replace_input_with(place, cast)


def _cast(graph: ir.Graph, value: ir.Value, dtype: ir.DataType) -> ir.Value:
    """A Cast right behind what makes the value."""
    node = ir.node("Cast", [value], {"to": dtype}, name=f"{value.name}.{dtype.name.lower()}")
    result = node.outputs[0]
    result.name, result.type, result.shape = node.name, ir.TensorType(dtype), value.shape
    if (maker := value.producer()) is None:
        graph.insert_before(graph[0], node)
    else:
        graph.insert_after(maker, node)
    return result
