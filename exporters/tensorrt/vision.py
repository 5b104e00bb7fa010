"""The vision graph for TensorRT: traced as for ONNX Runtime, in one float type throughout, symmetric int8 if asked.

In: a vision side, and for w8a8 its plan. Out: a graph of standard operators, its weights stored in the type that they
compute in, since TensorRT keeps no narrower copy of a float weight.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgevlm.exporters.onnx.external import ExternalData
from edgevlm.exporters.onnx.static_int8 import trace_static
from edgevlm.exporters.onnx.vision import trace_vision, write_vision
from edgevlm.exporters.tensorrt.half import HALVES, to_half
from edgevlm.models.vlm import VisionModel
from edgevlm.quant.vision import StaticPlan
from edgevlm.runtimes.build_plan import ComputeType

#: The first opset with bfloat16 in all operators that vision towers are traced to.
_BFLOAT16_OPSET = 22


def export_vision(
    vision: VisionModel,
    resolution: int,
    *,
    compute: ComputeType,
    static: StaticPlan | None,
    path: Path,
    data: ExternalData,
) -> int:
    """Write the graph to `path` and its big tensors to `data`; returns the bytes of its weights.

    Args:
        vision: encoder and projector, in any float dtype; left as it is.
        resolution: input pixels along one side.
        compute: the type to compute in.
        static: the layers on int8; None leaves all in float.
        path: the graph's file.
        data: the file of its tensors.

    Raises:
        ValueError: a weight is not finite.
        OSError: a file cannot be written.
    """
    model = trace_vision(vision, resolution) if static is None else trace_static(vision, resolution, static)
    if compute != "float32":
        to_half(model, HALVES[compute])
    if compute == "bfloat16":
        # Its convolutions have bfloat16; other operators differ in no more than types.
        model.opset_imports[""] = max(_BFLOAT16_OPSET, model.opset_imports[""])
    name_conditions(model.graph)
    return write_vision(model, "fp32", path, data)


def name_conditions(graph: ir.Graph) -> None:
    """Give loops that run a fixed number of times the condition that ONNX lets them leave out.

    TensorRT's parser knows a body's condition only where the loop was given one.
    """
    loops = [node for node in graph if node.op_type == "Loop" and node.inputs[1] is None]
    if not loops:
        return
    tensor = ir.tensor(np.array(True), name="loop.goes_on")
    value = ir.Value(name=tensor.name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(()), const_value=tensor)
    graph.register_initializer(value)
    for node in loops:
        node.replace_input_with(1, value)
