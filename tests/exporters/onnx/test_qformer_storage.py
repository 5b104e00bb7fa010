"""A tower with a Q-Former whose weights are stored in few bits: OpenVINO must see each image alone."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from edgevlm.exporters.onnx.external import ExternalData
from edgevlm.exporters.onnx.vision import trace_vision, write_vision
from edgevlm.models import load, resolve
from edgevlm.quant.schemes import half_prefixes
from edgevlm.recipe import Precision
from edgevlm.runtimes.base import EngineOptions
from edgevlm.runtimes.openvino import OpenVinoVision

MODEL = load(resolve("zoo:nano-tinygpt-v"))
SIZE = MODEL.spec.vision.image_size


def written(precision: Precision, folder: Path, halves: tuple[str, ...]) -> Path:
    path = folder / "vision.onnx"
    with ExternalData(folder / "vision.onnx_data") as data:
        write_vision(trace_vision(MODEL.vision, SIZE), precision, path, data, halves)
    return path


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_an_image_gives_the_same_whatever_came_before(precision: Precision, tmp_path: Path) -> None:
    path = written(precision, tmp_path, half_prefixes(MODEL.vision))
    stored = {value.name for value in onnx.load(path, load_external_data=False).graph.initializer}
    halves = {name for name in stored if name.endswith(".half")}
    # The queries, and what sees them alone: four matrices of self-attention and what asks the image.
    assert len(halves) == 6
    assert "projector.layers.0.self_attention.v_proj.weight.half" in halves
    assert "projector.layers.0.fc1.weight.codes" in stored
    engine = OpenVinoVision(path, MODEL.spec, EngineOptions(1))
    images = torch.randn(2, 1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)).numpy()
    first = np.array(engine.encode(images[0]))
    other = np.array(engine.encode(images[1]))
    assert np.array_equal(engine.encode(images[0]), first)
    assert np.abs(other - first).max() > 0.1 * np.abs(first).max()
    engine.close()
