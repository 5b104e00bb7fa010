"""Static int8 in a vision graph: QuantizeLinear and DequantizeLinear around its products, as a plan says.

In: a vision side and its `StaticPlan`. Out: a traced graph. A product gets int8 weights behind a DequantizeLinear with
a scale an output channel, and its input goes through one QuantizeLinear and DequantizeLinear, which products with the
same input share. All is symmetric, zero points are 0, so that ONNX Runtime, OpenVINO and TensorRT read the same file.

Where the pairs stand decides what runtimes fuse (docs/measurements/vision-int8.md). Linear layers have them in front
alone: bias and GELU behind stay in float. Convolutions have them behind, too, in front of GELU or the residual sum:
ONNX Runtime has no int8 convolution with a float result, and would compute it in float; OpenVINO loses little. Layer
scale is in weights and bias, so that nothing else stands between a product and the sum. Depthwise convolutions stay in
float, since they are bound by memory and gain nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgevlm.exporters.onnx.vision import trace_vision
from edgevlm.models.vlm import VisionModel
from edgevlm.quant.vision.folded import effective, folded
from edgevlm.quant.vision.plan import StaticPlan, quantize_weight

#: Of a product's weight in the graph, the axis of its outputs.
_OUTPUT_AXES = {"Conv": 0, "MatMul": 1}


def trace_static(vision: VisionModel, resolution: int, plan: StaticPlan) -> ir.Model:
    """The graph of `edgevlm.exporters.onnx.vision.trace_vision` with the plan's layers on int8.

    Raises:
        ValueError: a weight is not finite.
    """
    model = trace_vision(folded(vision, plan), resolution)
    graph = model.graph
    _drop_ones(graph)
    pairs: dict[tuple[ir.Value, float], ir.Value] = {}
    for name, layer in plan.layers.items():
        # What a constant was made of is no product any more.
        if (weight := graph.initializers.get(f"{name}.weight")) is None:
            continue
        ((node, _),) = weight.uses()
        x, axis = node.inputs[0], _OUTPUT_AXES[node.op_type]
        assert x is not None
        if (x, layer.input_scale) not in pairs:
            pairs[x, layer.input_scale] = _rounded(graph, x, layer.input_scale)
        node.replace_input_with(0, pairs[x, layer.input_scale])
        node.replace_input_with(1, _widened(graph, node, vision, plan, name, axis))
        del graph.initializers[f"{name}.weight"]
        if layer.output_scale is not None:
            readers = list(node.outputs[0].uses())
            wide = _rounded(graph, node.outputs[0], layer.output_scale)
            for reader, place in readers:
                reader.replace_input_with(place, wide)
    return model


def _drop_ones(graph: ir.Graph) -> None:
    """Remove products with a constant of ones: layer scales that went into weights."""
    for node in list(graph):
        if node.op_type != "Mul":
            continue
        for ones, other in (node.inputs, node.inputs[::-1]):
            value = None if ones is None else ones.const_value
            if value is None or other is None or node.outputs[0].shape != other.shape or not (value.numpy() == 1).all():
                continue
            ir.convenience.replace_all_uses_with(node.outputs[0], other)
            graph.remove(node, safe=True)
            if ones is not None and ones.name is not None and not ones.uses():
                del graph.initializers[ones.name]
            break


def _rounded(graph: ir.Graph, x: ir.Value, scale: float) -> ir.Value:
    """A value through QuantizeLinear and DequantizeLinear, which stand right behind what makes it."""
    name = f"{x.name}.int8"
    grid = [_constant(graph, f"{name}.scale", np.float32(scale)), _constant(graph, f"{name}.zero", np.int8(0))]
    narrow = _node("QuantizeLinear", [x, *grid], name)
    wide = _node("DequantizeLinear", [narrow.outputs[0], *grid], f"{name}.widen")
    if (maker := x.producer()) is None:
        graph.insert_before(graph[0], [narrow, wide])
    else:
        graph.insert_after(maker, [narrow, wide])
    return wide.outputs[0]


def _widened(graph: ir.Graph, before: ir.Node, vision: VisionModel, plan: StaticPlan, name: str, axis: int) -> ir.Value:
    """A layer's codes behind a DequantizeLinear: `[N, C, 1, 1]` of a convolution, else `[C, N]`."""
    path = f"{name}.weight"
    codes, scale = quantize_weight(effective(vision, plan, path))

    def read() -> ir.Tensor:
        codes, _ = quantize_weight(effective(vision, plan, path))
        return ir.tensor(np.ascontiguousarray(codes.numpy().T if axis else codes.numpy()), name=f"{path}.codes")

    shape = ir.Shape(codes.shape[::-1] if axis else codes.shape)
    # Computed again when they are written: all codes at once would be a second copy of the model.
    lazy = ir.LazyTensor(read, ir.DataType.INT8, shape, name=f"{path}.codes")
    stored = ir.Value(name=lazy.name, type=ir.TensorType(lazy.dtype), shape=shape, const_value=lazy)
    graph.register_initializer(stored)
    grid = [
        _constant(graph, f"{path}.scale", scale.numpy()),
        _constant(graph, f"{path}.zero", np.zeros(len(scale), np.int8)),
    ]
    wide = _node("DequantizeLinear", [stored, *grid], f"{path}.widen", axis=axis)
    graph.insert_before(before, wide)
    return wide.outputs[0]


def _node(op_type: str, inputs: list[ir.Value | None], name: str, **attributes: Any) -> ir.Node:
    """A node whose name is also that of its output."""
    node = ir.node(op_type, inputs, attributes, name=name)
    node.outputs[0].name = name
    return node


def _constant(graph: ir.Graph, name: str, array: NDArray[Any] | np.generic) -> ir.Value:
    tensor = ir.tensor(np.asarray(array), name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape), const_value=tensor)
    graph.register_initializer(value)
    return value
