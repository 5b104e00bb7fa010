"""The build plan of a TensorRT bundle, `build_plan.json`: what to build engines from, and how to run them.

In: the file that `edgevlm export --format tensorrt` wrote. Out: a `BuildPlan`, one `ComponentPlan` a graph. A plan is
written for a TensorRT version and a length of the key/value cache; both are in the graphs, too. All graphs have a batch
of one, and float32 at their borders but for the cache. They are to be built strongly typed.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgevlm.errors import BundleError
from edgevlm.recipe import StoredPrecision
from edgevlm.validation import first_problem

PLAN = "build_plan.json"
PLAN_SCHEMA_VERSION = 1
_HINT = "export the bundle again, or copy it again from where it came"
_MAX_BYTES = 1 << 20

ComputeType = Literal["float32", "float16", "bfloat16"]
Dtype = ComputeType | Literal["int64"]
Role = Literal["vision", "embed", "fusion", "decoder"]
Size = Annotated[int, Field(ge=0, le=1 << 31)]
Sizes = tuple[Size, ...]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TensorPlan(_Part):
    """An input or output of a graph; an axis without a fixed size has a name."""

    name: str
    dtype: Dtype
    shape: tuple[Size | str, ...]


class ShapeRange(_Part):
    """Smallest, usual and largest shape of an input within a profile."""

    tensor: str
    min: Sizes
    opt: Sizes
    max: Sizes


class ProfilePlan(_Part):
    """One optimization profile; inputs without a range have fixed shapes."""

    name: Literal["image", "lookup", "prompt", "prefill", "decode"]
    shapes: tuple[ShapeRange, ...] = ()


class CacheEntry(_Part):
    """Keys or values of one layer: the input with what was there, and the output with what was added."""

    past: str
    present: str


class ComponentPlan(_Part):
    """One graph, and the engine that is built from it.

    Attributes:
        role: which of the bundle's engines.
        graph: the ONNX file, relative to the bundle.
        data: the files that hold its tensors; some may belong to another graph, too.
        precision: how weights are stored.
        compute: type of the activations.
        inputs: of the graph, in order.
        outputs: likewise.
        profiles: in the order in which the engine is to have them.
        cache: of the decoder, two entries a layer.
        in_place: whether past and present of an entry are to be one buffer; else the engine reads one of two and writes
            the other, which change places after each run.
        weight_bytes: of the graph's weights, which the engine holds.
        workspace_bytes: ceiling of the workspace while the engine is built.
    """

    role: Role
    graph: str
    data: tuple[str, ...]
    precision: StoredPrecision
    compute: ComputeType
    inputs: tuple[TensorPlan, ...]
    outputs: tuple[TensorPlan, ...]
    profiles: tuple[ProfilePlan, ...]
    cache: tuple[CacheEntry, ...] = ()
    in_place: bool = False
    weight_bytes: int = Field(ge=0)
    workspace_bytes: int = Field(gt=0)


class BuildPlan(_Part):
    """The content of `build_plan.json`.

    Attributes:
        schema_version: of this file.
        tensorrt: the version that the graphs are written for; newer ones read them, too.
        attention: one operator each for attention, rotation and cache, or products and sums alone.
        kv_length: positions of the key/value cache.
        components: in the order in which they run.
    """

    schema_version: int
    tensorrt: str = Field(pattern=r"^\d{1,3}\.\d{1,3}$")
    attention: Literal["fused", "decomposed"]
    kv_length: int = Field(gt=0)
    components: tuple[ComponentPlan, ...]

    def component(self, role: Role) -> ComponentPlan | None:
        """The component of that role, or None."""
        return next((each for each in self.components if each.role == role), None)


def tensor_bytes(tensor: TensorPlan, shape: Sizes) -> int:
    """Bytes of a tensor with this shape."""
    return math.prod(shape) * {"float32": 4, "float16": 2, "bfloat16": 2, "int64": 8}[tensor.dtype]


def fixed_bytes(tensor: TensorPlan) -> int:
    """Bytes of a tensor whose axes all have fixed sizes.

    Raises:
        BundleError: one has none.
    """
    sizes = tuple(size for size in tensor.shape if isinstance(size, int))
    if len(sizes) != len(tensor.shape):
        raise BundleError(f"{tensor.name} has no fixed size", PLAN, _HINT)
    return tensor_bytes(tensor, sizes)


def write_build_plan(folder: Path, plan: BuildPlan) -> None:
    """Write the plan into a bundle under construction."""
    text = json.dumps(plan.model_dump(mode="json"), indent=2, sort_keys=True)
    (folder / PLAN).write_text(text + "\n", encoding="utf-8")


def read_build_plan(path: Path) -> BuildPlan:
    """Read a plan.

    Raises:
        BundleError: it cannot be read, or is of another schema version.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise BundleError("the build plan is too large", str(path), _HINT)
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"the build plan cannot be read: {error}", str(path), _HINT) from error
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version != PLAN_SCHEMA_VERSION:
        what = f"unknown schema version {version!r:.20} of a build plan"
        raise BundleError(what, str(path), f"this edgevlm reads version {PLAN_SCHEMA_VERSION}")
    try:
        return BuildPlan.model_validate(data)
    except ValidationError as error:
        field, problem = first_problem(error)
        raise BundleError(f"the build plan: {field}: {problem}", str(path), _HINT) from error
