"""Bundles whose vision tower runs on int8."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from edgevlm import pipeline
from edgevlm.bundle import Bundle
from edgevlm.errors import InputError
from edgevlm.models import load
from edgevlm.recipe import CalibrationData, Recipe, VerifyThresholds
from edgevlm.runtimes.base import EngineOptions
from edgevlm.runtimes.select import open_vision
from edgevlm.zoo.synth import synth


def silent(_done: float, _total: float, _what: str) -> None:
    """A progress nobody watches."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    synth("fastvlm-0.5b", folder, tiny=True, resolution=128)
    return folder


def compiled(checkpoint: Path, out: Path, **fields: Any) -> Bundle:
    """Random weights answer by chance: what the image does to the answer is not asked."""
    lenient = VerifyThresholds(top1_agreement=0, token_agreement=0)
    calibration = CalibrationData(source="scenes", n=12)
    recipe = Recipe(
        model=str(checkpoint),
        precision="int8",
        vision_precision="w8a8",
        calibration=calibration,
        verify=lenient,
        **fields,
    )
    return pipeline.compile_recipe(recipe, out, progress=silent)


@pytest.fixture(scope="module", params=["onnx", "gguf"])
def bundle(request: pytest.FixtureRequest, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return compiled(checkpoint, tmp_path_factory.mktemp("bundles") / request.param, format=request.param)


def test_manifest_states_the_bits_that_the_file_holds(bundle: Bundle, checkpoint: Path) -> None:
    graph = bundle.artifact("vision", ".onnx")
    assert graph.name == "vision_encoder_quantized.onnx"
    entry = bundle.find("vision", ".onnx_data")
    assert entry is not None
    assert entry.precision == "w8a8"
    kinds = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT8)
    tensors = [value for value in onnx.load(str(graph)).graph.initializer if value.data_type in kinds]
    stored = sum(numpy_helper.to_array(value).nbytes for value in tensors)
    weights = sum(parameter.numel() for parameter in load(checkpoint).vision.parameters())
    assert entry.parameters == weights
    assert entry.bits_per_weight == pytest.approx(8 * stored / weights, abs=1e-4)
    assert entry.bytes == (graph.parent / f"{graph.name}_data").stat().st_size


def test_people_are_told_and_features_were_verified(bundle: Bundle) -> None:
    (note,) = [note for note in bundle.spec.notes if "int8" in note]
    assert "layers of the vision tower run on int8, features of calibration images are" in note
    (result,) = [result for result in bundle.manifest.parity if result.metric == "vision_cosine"]
    assert result.threshold == pipeline.thresholds("int8", "w8a8", VerifyThresholds()).vision_cosine
    # In float32 it would be 1.
    assert result.threshold <= result.value < 0.99999


def test_both_engines_open_it(bundle: Bundle) -> None:
    pixels = np.random.default_rng(0).random((1, *bundle.spec.vision.input_shape), np.float32)
    features = [open_vision(bundle, name, EngineOptions(1)).encode(pixels) for name in ("onnxruntime", "openvino")]
    first, second = (array.ravel().astype(np.float64) for array in features)
    assert first @ second / np.linalg.norm(first) / np.linalg.norm(second) > 0.98


def test_without_images_it_is_refused_before_work(checkpoint: Path, tmp_path: Path) -> None:
    recipe = Recipe(model=str(checkpoint), vision_precision="w8a8")
    with pytest.raises(InputError, match="a vision tower in static int8 needs calibration images") as caught:
        pipeline.compile_recipe(recipe, tmp_path / "out", progress=silent)
    assert "--calibrate" in caught.value.hint
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match="no calibration image that can be read"):
        pipeline.compile_recipe(
            recipe.model_copy(update={"calibration": CalibrationData(source=str(empty))}),
            tmp_path / "out",
            progress=silent,
        )
    assert list(tmp_path.iterdir()) == [empty]
