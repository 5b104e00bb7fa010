"""Vision graphs for TensorRT: float16 throughout, int8 beside it, loops that its parser reads."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto
from reducer_models import CLIP, FASTVITHD, reducer, scene_pixels, vision_model, vision_spec
from static_vision import planned, vlm
from torch import Tensor, nn

from edgevlm.exporters.lint import Finding, Toolkit, lint_graph
from edgevlm.exporters.onnx.external import ExternalData
from edgevlm.exporters.tensorrt.vision import export_vision
from edgevlm.models.taps import Taps, TokenReducer
from edgevlm.models.vlm import VisionModel
from edgevlm.quant.vision import StaticPlan
from edgevlm.runtimes.build_plan import ComputeType
from edgevlm.runtimes.device import Device
from edgevlm.runtimes.ort_session import open_session
from edgevlm.spec import VisionSpec

IMAGES, KEEP = 8, 9
TOOLKITS = (Toolkit("tensorrt", (10, 3), (8, 7)), Toolkit("rtx", (1, 7), (8, 6)))


def exported(
    vision: VisionModel, size: int, folder: Path, static: StaticPlan | None = None, compute: ComputeType = "float16"
) -> Path:
    path = folder / "half.onnx"
    with ExternalData(folder / "half.onnx_data") as data:
        assert export_vision(vision, size, compute=compute, static=static, path=path, data=data) > 0
    return path


class Together(TokenReducer):
    """What each of some reducers makes of the same tokens, so that one trace serves all."""

    before_projector = True

    def __init__(self, spec: VisionSpec, names: Sequence[str]) -> None:
        super().__init__()
        self.reducers = nn.ModuleList([reducer(name, spec, KEEP) for name in names])
        self.layers = tuple({layer for each in self.reducers for layer in each.layers})

    def forward(self, x: Tensor, taps: Taps) -> Tensor:
        return torch.cat([each(x, taps) for each in self.reducers], dim=1)


def by_onnxruntime(path: Path, pixels: NDArray[np.float32], compute: ComputeType = "float16") -> NDArray[np.float32]:
    found = open_session(path, 1, {}, Device("cpu"), compute=compute)
    return np.asarray(found.run(None, {"pixel_values": pixels})[0])


def cosines(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> NDArray[np.float32]:
    """Of each token."""
    lengths = np.linalg.norm(found, axis=-1) * np.linalg.norm(wanted, axis=-1)
    result: NDArray[np.float32] = (found * wanted).sum(axis=-1) / lengths
    return result


def test_float16_rounds_and_no_more(tmp_path: Path) -> None:
    """Of FastViTHD, whose attention ONNX Runtime's own fusion breaks in float16."""
    spec = vision_spec(FASTVITHD, 2)
    vision = vision_model(spec)
    path = exported(vision, spec.image_size, tmp_path)
    pixels = scene_pixels(spec.image_size, IMAGES)
    found = by_onnxruntime(path, pixels.numpy())
    assert found.dtype == np.float32
    assert cosines(found, vision(pixels).numpy()).min() > 0.999
    graph = onnx.load(str(path), load_external_data=False).graph
    assert not [each.name for each in graph.initializer if each.data_type == TensorProto.FLOAT]
    # One cast where pixels come in and one where embeddings leave: nothing between them is float32.
    assert [node.op_type for node in graph.node].count("Cast") == 2


def test_reducers_keep_the_same_tokens(tmp_path: Path) -> None:
    """Scores that choose stay in float32; a loop is read by TensorRT's parser, each value has one type."""
    spec = vision_spec(CLIP)
    vision = vision_model(spec)
    vision.reducer = Together(spec, ["divprune", "visionzip", "prumerge", "hired"])
    path = exported(vision, spec.image_size, tmp_path)
    onnx.checker.check_model(str(path), full_check=True)
    pixels = scene_pixels(spec.image_size, IMAGES)
    kept = cosines(by_onnxruntime(path, pixels.numpy()), vision(pixels).numpy()) > 0.999
    assert kept.shape == (IMAGES, 4 * KEEP)
    assert kept.mean() > 0.95
    assert not blocking(path)


def test_static_int8_stands_in_float16(tmp_path: Path) -> None:
    """Codes are signed, zero points 0, and scales have the type of the values around them."""
    model = vlm("clip")
    size = model.spec.vision.image_size
    path = exported(model.vision, size, tmp_path, planned(model, 8))
    onnx.checker.check_model(str(path), full_check=True)
    assert not blocking(path)
    graph = onnx.load(str(path)).graph
    tensors = {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}
    pairs = [node for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert pairs
    for node in pairs:
        assert tensors[node.input[1]].dtype == np.float16
        assert tensors[node.input[2]].dtype == np.int8
        assert not tensors[node.input[2]].any()
    pixels = scene_pixels(size, IMAGES)
    assert cosines(by_onnxruntime(path, pixels.numpy()), model.vision(pixels).numpy()).mean() > 0.95


def test_a_weight_that_is_no_number_is_refused(tmp_path: Path) -> None:
    spec = vision_spec(CLIP)
    vision = vision_model(spec)
    vision.get_parameter("projector.linear_1.weight")[0, 0] = float("nan")
    with pytest.raises(ValueError, match="holds a value that is no number"):
        exported(vision, spec.image_size, tmp_path)


def blocking(path: Path) -> list[Finding]:
    """What keeps TensorRT 10.3 or RTX's parser from reading a graph."""
    return [finding for toolkit in TOOLKITS for finding in lint_graph(path, toolkit) if finding.blocks]
