"""Make the build plan of the graphs that were written.

In: the ONNX files of a bundle under construction, without their data. Out: `BuildPlan`, whose inputs and outputs are
those that stand in the files.
"""

from __future__ import annotations

from pathlib import Path

import onnx

from edgevlm.exporters.base import Artifact
from edgevlm.exporters.tensorrt.versions import image_positions
from edgevlm.runtimes.build_plan import (
    CacheEntry,
    ComponentPlan,
    ComputeType,
    Dtype,
    ProfilePlan,
    Role,
    ShapeRange,
    TensorPlan,
)
from edgevlm.spec import ModelSpec

_DTYPES: dict[int, Dtype] = {
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.FLOAT16: "float16",
    onnx.TensorProto.BFLOAT16: "bfloat16",
    onnx.TensorProto.INT64: "int64",
}
#: What a named axis is within a profile: smallest, usual, largest size.
Sizes = tuple[int, int, int]
#: Text around the image in a usual prompt, in tokens.
USUAL_TEXT = 64
_MIB = 1 << 20
_LEAST_WORKSPACE = 256 * _MIB
_VISION_WORKSPACE = 1024 * _MIB


def component(
    folder: Path,
    role: Role,
    artifacts: list[Artifact],
    *,
    compute: ComputeType,
    profiles: dict[str, dict[str, Sizes]],
    in_place: bool = False,
    largest_matrix: int = 0,
    shares: tuple[str, ...] = (),
) -> ComponentPlan:
    """The plan of one graph.

    Args:
        folder: of the bundle.
        role: of the component.
        artifacts: its graph, and its data behind it.
        compute: the type that it computes in.
        profiles: by name, the sizes of named axes.
        in_place: whether the cache is to be updated where it lies.
        largest_matrix: elements of the largest weight, where it sets the workspace.
        shares: data files of other components that the graph reads, too.
    """
    graph_file, data_file = artifacts
    graph = onnx.load(str(folder / graph_file.path), load_external_data=False).graph
    inputs = tuple(_tensor(value) for value in graph.input)
    outputs = tuple(_tensor(value) for value in graph.output)
    past = [tensor.name for tensor in inputs if tensor.name.startswith("past_key_values.")]
    size = 4 if compute == "float32" else 2
    workspace = max(_LEAST_WORKSPACE, 2 * size * largest_matrix) if role != "vision" else _VISION_WORKSPACE
    return ComponentPlan.model_validate(
        {
            "role": role,
            "graph": graph_file.path,
            "data": (data_file.path, *shares),
            "precision": graph_file.precision,
            "compute": compute,
            "inputs": inputs,
            "outputs": outputs,
            "profiles": tuple(_profile(name, sizes, inputs) for name, sizes in profiles.items()),
            "cache": tuple(
                CacheEntry(past=name, present=name.replace("past_key_values", "present", 1)) for name in past
            ),
            "in_place": in_place,
            "weight_bytes": round(data_file.bits_per_weight * data_file.parameters / 8),
            "workspace_bytes": -(-workspace // _MIB) * _MIB,
        }
    )


def usual_prompt(spec: ModelSpec, kv_length: int) -> int:
    """Positions of a usual prompt: one image and a question."""
    return min(kv_length, image_positions(spec) + USUAL_TEXT)


def _tensor(value: onnx.ValueInfoProto) -> TensorPlan:
    kind = value.type.tensor_type
    shape = tuple(axis.dim_param or axis.dim_value for axis in kind.shape.dim)
    return TensorPlan(name=value.name, dtype=_DTYPES[kind.elem_type], shape=shape)


def _profile(name: str, sizes: dict[str, Sizes], inputs: tuple[TensorPlan, ...]) -> ProfilePlan:
    ranges = []
    for tensor in inputs:
        if all(isinstance(axis, int) for axis in tensor.shape):
            continue
        shapes = (
            tuple(sizes[axis][place] if isinstance(axis, str) else axis for axis in tensor.shape) for place in range(3)
        )
        low, usual, high = shapes
        ranges.append(ShapeRange(tensor=tensor.name, min=low, opt=usual, max=high))
    return ProfilePlan.model_validate({"name": name, "shapes": tuple(ranges)})
