"""The OpenVINO vision engine computes what the IR does."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgevlm.bundle import Bundle
from edgevlm.errors import BundleError, EngineError
from edgevlm.models.vlm import VlmModel
from edgevlm.runtimes.base import EngineOptions
from edgevlm.runtimes.openvino import OpenVinoVision
from edgevlm.runtimes.torch import TorchVision

OPTIONS = EngineOptions(threads=1)


def test_image_embeddings_equal_torch(model: VlmModel, bundle: Bundle) -> None:
    pixels = np.random.default_rng(0).random((2, 3, 64, 64), dtype=np.float32)
    engine = OpenVinoVision(bundle.artifact("vision", ".onnx"), bundle.spec, OPTIONS)
    tolerance = 1e-5 if engine.precision == "f32" else 0.02
    np.testing.assert_allclose(engine.encode(pixels), TorchVision(model).encode(pixels), atol=tolerance)


def test_results_are_not_overwritten_by_the_next_image(bundle: Bundle) -> None:
    engine = OpenVinoVision(bundle.artifact("vision", ".onnx"), bundle.spec, OPTIONS)
    first = engine.encode(np.zeros((1, 3, 64, 64), np.float32))
    before = first.copy()
    engine.encode(np.ones((1, 3, 64, 64), np.float32))
    np.testing.assert_array_equal(first, before)


def test_a_wrong_size_is_an_engine_error(bundle: Bundle) -> None:
    path = bundle.artifact("vision", ".onnx")
    with pytest.raises(EngineError, match="failed"):
        OpenVinoVision(path, bundle.spec, OPTIONS).encode(np.zeros((1, 3, 32, 32), np.float32))
    other = replace(bundle.spec, vision=replace(bundle.spec.vision, image_tokens=4))
    with pytest.raises(BundleError, match="makes 16 image tokens of 64, the spec says 4 of 64"):
        OpenVinoVision(path, other, OPTIONS)


def test_a_damaged_graph_is_an_engine_error(bundle: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "vision.onnx"
    path.write_bytes(b"\x08\x0a nonsense")
    with pytest.raises(EngineError, match="cannot compile") as caught:
        OpenVinoVision(path, bundle.spec, OPTIONS)
    assert caught.value.where == str(path)
