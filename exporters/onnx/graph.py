"""A small writer of ONNX graphs: nodes in order, names given by the caller, nothing that changes between two runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from edgevlm._version import __version__
from edgevlm.exporters.onnx.external import ExternalData, StoredTensor
from edgevlm.runtimes.build_plan import ComputeType

CONTRIB = "com.microsoft"
#: 23 brings RMSNormalization; files for ONNX Runtime need no newer operator.
OPSET = 23
IR_VERSION = 10

#: Smaller tensors live in the graph itself: shape inference reads them, and they would only fragment the data file.
_INLINE_BELOW = 1024

FLOAT = onnx.TensorProto.FLOAT
FLOAT16 = onnx.TensorProto.FLOAT16
BFLOAT16 = onnx.TensorProto.BFLOAT16
INT4 = onnx.TensorProto.INT4
INT8 = onnx.TensorProto.INT8
INT32 = onnx.TensorProto.INT32
INT64 = onnx.TensorProto.INT64
BOOL = onnx.TensorProto.BOOL
#: By the name that a build plan gives them.
FLOAT_TYPES: dict[ComputeType, int] = {"float32": FLOAT, "float16": FLOAT16, "bfloat16": BFLOAT16}
#: The end of an axis, for Slice.
INT64_MAX = np.iinfo(np.int64).max


class Graph:
    """One graph under construction. Every method that adds something returns the name of the value it made.

    `weight_bytes` counts the payload of the weights written through it, without tables and shape constants. `opset` is
    that of ONNX's own operators; `contrib` says whether ONNX Runtime's may stand beside them.
    """

    def __init__(self, name: str, data: ExternalData, *, opset: int = OPSET, contrib: bool = True) -> None:
        self.name = name
        self.data = data
        self.opset = opset
        self.contrib = contrib
        self.weight_bytes = 0
        self._nodes: list[onnx.NodeProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}

    def input(self, name: str, data_type: int, shape: list[str | int]) -> str:
        """Declare an input; strings name dynamic axes."""
        self._inputs.append(helper.make_tensor_value_info(name, data_type, shape))
        return name

    def output(self, name: str, data_type: int, shape: list[str | int]) -> None:
        """Declare a value as an output."""
        self._outputs.append(helper.make_tensor_value_info(name, data_type, shape))

    def constant(self, name: str, value: NDArray[Any]) -> str:
        """A small tensor inside the graph; a name that exists already stands for the same value."""
        if name not in self._initializers:
            self._initializers[name] = numpy_helper.from_array(value, name)
        return name

    def integers(self, *values: int) -> str:
        """A constant int64 vector."""
        name = "const." + "_".join(str(value) for value in values)
        return self.constant(name, np.array(values, dtype=np.int64))

    @staticmethod
    def filling(value: int) -> onnx.TensorProto:
        """What `ConstantOfShape` fills an int64 tensor with."""
        return helper.make_tensor("value", INT64, [1], [value])

    def weight(self, name: str, value: NDArray[Any]) -> str:
        """A weight of the model."""
        self.weight_bytes += value.nbytes
        return self.tensor(name, value)

    def tensor(self, name: str, value: NDArray[Any]) -> str:
        """A tensor beside the graph, or inside when it is small."""
        if value.nbytes < _INLINE_BELOW:
            return self.constant(name, value)
        return self.stored(name, self.data.append(value))

    def stored(self, name: str, tensor: StoredTensor, shape: tuple[int, ...] | None = None) -> str:
        """A tensor that was already written, perhaps for another graph."""
        self._initializers[name] = tensor.proto(name, shape)
        return name

    def op(self, kind: str, inputs: list[str], output: str, *, domain: str = "", **attributes: Any) -> str:
        """Add a node with one output."""
        self.ops(kind, inputs, [output], domain=domain, **attributes)
        return output

    def ops(self, kind: str, inputs: list[str], outputs: list[str], *, domain: str = "", **attributes: Any) -> None:
        """Add a node; an empty name stands for an absent optional input or output."""
        name = next(output for output in outputs if output)
        self._nodes.append(helper.make_node(kind, inputs, outputs, name, domain=domain, **attributes))

    def choose(
        self, condition: str, output: str, data_type: int, then: Callable[[], str], otherwise: Callable[[], str]
    ) -> str:
        """Add an `If` with one output, a vector; each branch adds its nodes and returns the name of its result."""
        branches = {
            name: self._branch(f"{output}.{name}", data_type, make)
            for name, make in (("then_branch", then), ("else_branch", otherwise))
        }
        return self.op("If", [condition], output, **branches)

    def _branch(self, name: str, data_type: int, make: Callable[[], str]) -> onnx.GraphProto:
        """What `make` adds, as a graph of its own that reads names of this one."""
        around, self._nodes = self._nodes, []
        result = make()
        inside, self._nodes = self._nodes, around
        return helper.make_graph(inside, name, [], [helper.make_tensor_value_info(result, data_type, [f"{name}.size"])])

    def save(self, path: Path) -> None:
        """Write the model file.

        Raises:
            OSError: it cannot be written.
        """
        initializers = [self._initializers[name] for name in sorted(self._initializers)]
        graph = helper.make_graph(self._nodes, self.name, self._inputs, self._outputs, initializers)
        opsets = [helper.make_opsetid("", self.opset)]
        opsets += [helper.make_opsetid(CONTRIB, 1)] if self.contrib else []
        model = helper.make_model(graph, opset_imports=opsets, producer_name="edgevlm", producer_version=__version__)
        model.ir_version = IR_VERSION
        path.write_bytes(model.SerializeToString(deterministic=True))
