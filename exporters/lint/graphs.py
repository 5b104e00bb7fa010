"""Reading an ONNX file for the lint: its nodes, those of subgraphs too, and the constants that decide.

Weights in other files stay there; only zero points and scales are read. Nothing is executed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import external_data_helper, numpy_helper

from edgevlm.errors import InputError

_HINT = "give an .onnx file, or the folder that `edgevlm export` wrote"
#: Subgraphs within subgraphs; no exporter nests deeper.
_DEEPEST = 8


@dataclass(frozen=True)
class Node:
    """One node: its operator, attributes, and the element types and constants of its inputs.

    Attributes:
        name: its own, or else its first output's.
        types: ONNX data types of the inputs, 0 where not known.
    """

    name: str
    domain: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]
    types: tuple[int, ...]
    scope: Scope = field(repr=False)

    def has_input(self, index: int) -> bool:
        """Whether the optional input is there."""
        return index < len(self.inputs) and self.inputs[index] != ""

    def constant(self, index: int) -> NDArray[Any] | None:
        """The value of an input that is a constant of the graph; None where it is computed or absent."""
        return self.scope.value(self.inputs[index]) if self.has_input(index) else None

    def shape(self, index: int) -> tuple[int, ...] | None:
        """The shape of an input that is a constant of the graph."""
        return self.scope.shape(self.inputs[index]) if self.has_input(index) else None

    def is_constant(self, index: int) -> bool:
        """Whether an input is a constant of the graph."""
        return self.has_input(index) and self.scope.tensor(self.inputs[index]) is not None


class Scope:
    """Constants and types that a graph can see: its own, and those of the graphs around it."""

    def __init__(self, graph: onnx.GraphProto, folder: Path, around: Scope | None = None) -> None:
        self._folder = folder
        self._around = around
        self._tensors = {tensor.name: tensor for tensor in graph.initializer}
        self._types = {tensor.name: tensor.data_type for tensor in graph.initializer}
        for value in (*graph.input, *graph.output, *graph.value_info):
            self._types.setdefault(value.name, value.type.tensor_type.elem_type)
        for node in graph.node:
            for attribute in node.attribute:
                if node.op_type == "Constant" and attribute.name == "value" and node.output:
                    self._tensors[node.output[0]] = attribute.t
                    self._types[node.output[0]] = attribute.t.data_type
                if node.op_type == "Cast" and attribute.name == "to" and node.output:
                    self._types.setdefault(node.output[0], attribute.i)

    def tensor(self, name: str) -> onnx.TensorProto | None:
        """A constant by its name."""
        found = self._tensors.get(name)
        return found if found is not None or self._around is None else self._around.tensor(name)

    def type(self, name: str) -> int:
        """A value's element type; 0 where the graph does not say."""
        return self._types.get(name) or (self._around.type(name) if self._around is not None else 0)

    def shape(self, name: str) -> tuple[int, ...] | None:
        """The shape of a constant."""
        tensor = self.tensor(name)
        return None if tensor is None else tuple(tensor.dims)

    def value(self, name: str) -> NDArray[Any] | None:
        """The value of a constant, read from its own file if need be.

        Raises:
            InputError: that file is missing, too short, or outside the model's folder.
        """
        tensor = self.tensor(name)
        if tensor is None:
            return None
        try:
            if external_data_helper.uses_external_data(tensor):
                copy = onnx.TensorProto()
                copy.CopyFrom(tensor)
                external_data_helper.load_external_data_for_tensor(copy, str(self._folder))
                tensor = copy
            return np.asarray(numpy_helper.to_array(tensor))
        except (OSError, ValueError, RuntimeError, TypeError, onnx.checker.ValidationError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(f"the tensor {name} cannot be read: {reason}", str(self._folder), _HINT) from error


def read_model(path: Path) -> onnx.ModelProto:
    """An ONNX file without its external data.

    Raises:
        InputError: it is no ONNX model.
    """
    try:
        model = onnx.load_model(str(path), load_external_data=False)
    # protobuf raises classes of its own, which differ between its implementations.
    except Exception as error:
        raise InputError(f"this is no ONNX model: {str(error).splitlines()[0]}", str(path), _HINT) from error
    if not model.graph.node:
        raise InputError("the model has no nodes", str(path), _HINT)
    return model


def nodes_of(model: onnx.ModelProto, folder: Path) -> Iterator[Node]:
    """Every node of a model, subgraphs and local functions included."""
    yield from _nodes(model.graph, Scope(model.graph, folder), 0)
    for function in model.functions:
        body = onnx.helper.make_graph(list(function.node), function.name, [], [])
        yield from _nodes(body, Scope(body, folder), 0)


def _nodes(graph: onnx.GraphProto, scope: Scope, depth: int) -> Iterator[Node]:
    for node in graph.node:
        attributes = {attribute.name: _attribute(attribute) for attribute in node.attribute}
        outputs = tuple(node.output)
        yield Node(
            node.name or next((output for output in outputs if output), node.op_type),
            "" if node.domain == "ai.onnx" else node.domain,
            node.op_type,
            tuple(node.input),
            outputs,
            attributes,
            tuple(scope.type(name) if name else 0 for name in node.input),
            scope,
        )
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH and depth < _DEEPEST:
                yield from _nodes(attribute.g, Scope(attribute.g, scope._folder, scope), depth + 1)


def _attribute(attribute: onnx.AttributeProto) -> Any:
    """An attribute's value; graphs are walked elsewhere."""
    return None if attribute.type == onnx.AttributeProto.GRAPH else onnx.helper.get_attribute_value(attribute)
