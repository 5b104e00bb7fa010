"""Build plans are read as they were written, and files that are none are refused by name."""

import json
from pathlib import Path

import pytest

from edgevlm.errors import BundleError
from edgevlm.runtimes.build_plan import (
    PLAN,
    PLAN_SCHEMA_VERSION,
    BuildPlan,
    CacheEntry,
    ComponentPlan,
    ProfilePlan,
    ShapeRange,
    TensorPlan,
    read_build_plan,
    write_build_plan,
)

DECODER = ComponentPlan(
    role="decoder",
    graph="onnx/decoder.onnx",
    data=("onnx/decoder.onnx_data",),
    precision="int4",
    compute="float16",
    inputs=(TensorPlan(name="inputs_embeds", dtype="float32", shape=(1, "sequence_length", 64)),),
    outputs=(TensorPlan(name="logits", dtype="float32", shape=(1, 1, 100)),),
    profiles=(
        ProfilePlan(
            name="decode",
            shapes=(ShapeRange(tensor="inputs_embeds", min=(1, 1, 64), opt=(1, 1, 64), max=(1, 1, 64)),),
        ),
    ),
    cache=(CacheEntry(past="past_key_values.0.key", present="present.0.key"),),
    in_place=True,
    weight_bytes=1000,
    workspace_bytes=1 << 28,
)
EXAMPLE = BuildPlan(
    schema_version=PLAN_SCHEMA_VERSION, tensorrt="10.16", attention="fused", kv_length=128, components=(DECODER,)
)


def test_a_plan_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_build_plan(tmp_path, EXAMPLE)
    plan = read_build_plan(tmp_path / PLAN)
    assert plan == EXAMPLE
    assert plan.component("decoder") == DECODER
    assert plan.component("vision") is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema_version": 2}, "schema version 2"),
        ({"tensorrt": "newest"}, "tensorrt"),
        ({"kv_length": 0}, "kv_length"),
        ({"engine": "x"}, "engine"),
        ({"components": [{"role": "decoder"}]}, "components"),
    ],
)
def test_other_content_is_refused(change: dict[str, object], said: str, tmp_path: Path) -> None:
    (tmp_path / PLAN).write_text(json.dumps({**EXAMPLE.model_dump(mode="json"), **change}))
    with pytest.raises(BundleError, match=said):
        read_build_plan(tmp_path / PLAN)


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b"{" * 100_000])
def test_a_file_that_is_no_plan_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / PLAN).write_bytes(content)
    with pytest.raises(BundleError):
        read_build_plan(tmp_path / PLAN)


def test_a_missing_plan_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="cannot be read"):
        read_build_plan(tmp_path / PLAN)
