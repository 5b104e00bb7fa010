"""Bundles for TensorRT: of a whole model, and one of a single small graph, INT4 weights and all, built in a moment."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tiny import tiny_model

from edgevlm.bundle import SCHEMA_VERSION, ArtifactEntry, Manifest, sha256_file, write_manifest
from edgevlm.exporters.base import Artifact
from edgevlm.exporters.tensorrt.exporter import export
from edgevlm.exporters.tensorrt.versions import TensorRtOptions
from edgevlm.models.vlm import VlmModel
from edgevlm.recipe import Precision, VisionPrecision
from edgevlm.runtimes.build_plan import (
    PLAN,
    PLAN_SCHEMA_VERSION,
    BuildPlan,
    ComponentPlan,
    ProfilePlan,
    ShapeRange,
    TensorPlan,
    write_build_plan,
)

WIDTH, ROWS, BLOCK = 256, 512, 32
#: Of codes and scales.
PACKED_BYTES = WIDTH * ROWS // 2 + WIDTH // BLOCK * ROWS * 2


def int4_bundle(folder: Path, tensorrt: str = "10.3", weight_bytes: int = PACKED_BYTES) -> Path:
    """A bundle whose vision graph is one product with INT4 blocks."""
    (folder / "onnx").mkdir(parents=True)
    graph = folder / "onnx" / "vision_encoder.onnx"
    _write_graph(graph)
    plan = BuildPlan(
        schema_version=PLAN_SCHEMA_VERSION,
        tensorrt=tensorrt,
        attention="decomposed",
        kv_length=64,
        components=(_component(weight_bytes),),
    )
    write_build_plan(folder, plan)
    artifacts = [Artifact(PLAN, "config", "json"), Artifact("onnx/vision_encoder.onnx", "vision", "onnx")]
    return name_files(folder, tiny_model(), artifacts)


def trt_bundle(
    folder: Path, model: VlmModel, options: TensorRtOptions, precision: Precision, vision_precision: VisionPrecision
) -> Path:
    """A bundle of a model in the standard dialect, as the export writes it."""
    folder.mkdir()
    artifacts = export(
        model,
        folder,
        precision=precision,
        vision_precision=vision_precision,
        options=options,
        progress=lambda *_: None,
    )
    return name_files(folder, model, artifacts)


def name_files(folder: Path, model: VlmModel, artifacts: list[Artifact]) -> Path:
    """Write the manifest of files that are there."""
    entries = [
        ArtifactEntry(
            path=each.path,
            role=each.role,
            format=each.format,
            precision=each.precision,
            bytes=(folder / each.path).stat().st_size,
            sha256=sha256_file(folder / each.path),
        )
        for each in artifacts
    ]
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        name=model.spec.name,
        format="tensorrt",
        spec=model.spec.to_dict(),
        recipe={},
        artifacts=entries,
    )
    write_manifest(folder, manifest)
    return folder


def _component(weight_bytes: int) -> ComponentPlan:
    shapes = ShapeRange(tensor="x", min=(1, WIDTH), opt=(8, WIDTH), max=(64, WIDTH))
    return ComponentPlan(
        role="vision",
        graph="onnx/vision_encoder.onnx",
        data=(),
        precision="int4",
        compute="float16",
        inputs=(TensorPlan(name="x", dtype="float32", shape=("rows", WIDTH)),),
        outputs=(TensorPlan(name="y", dtype="float32", shape=("rows", ROWS)),),
        profiles=(ProfilePlan(name="image", shapes=(shapes,)),),
        weight_bytes=weight_bytes,
        workspace_bytes=1 << 28,
    )


def _write_graph(path: Path) -> None:
    generator = np.random.default_rng(0)
    codes = generator.integers(0, 256, WIDTH * ROWS // 2, dtype=np.uint8).tobytes()
    scales = generator.random((WIDTH // BLOCK, ROWS)).astype(np.float16)
    nodes = [
        helper.make_node("Cast", ["x"], ["narrow"], "narrow", to=TensorProto.FLOAT16),
        helper.make_node("DequantizeLinear", ["codes", "scales"], ["weight"], "weight", axis=0, block_size=BLOCK),
        helper.make_node("MatMul", ["narrow", "weight"], ["product"], "product"),
        helper.make_node("Cast", ["product"], ["y"], "wide", to=TensorProto.FLOAT),
    ]
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", ROWS])],
        [
            helper.make_tensor("codes", TensorProto.INT4, [WIDTH, ROWS], codes, raw=True),
            numpy_helper.from_array(scales, "scales"),
        ],
    )
    onnx.save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), str(path))
