"""The graph of an encoder of packed patches: one graph for images of any shape, in every engine."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx_models import session

from edgevlm.exporters.onnx.external import ExternalData
from edgevlm.exporters.onnx.vision import trace_vision, write_vision
from edgevlm.models.projector import MlpProjector
from edgevlm.models.qwen2_vision import Qwen2Vision
from edgevlm.models.vlm import VisionModel
from edgevlm.recipe import Precision
from edgevlm.spec import MlpProjectorSpec, Qwen2VisionSpec

ENCODER = Qwen2VisionSpec(
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    patch_size=14,
    merge_size=2,
    frames=2,
)


@pytest.fixture(scope="module")
def vision() -> VisionModel:
    generator = torch.Generator().manual_seed(0)
    projector = MlpProjector(MlpProjectorSpec(ENCODER.output_size), ENCODER.output_size, 40)
    model = VisionModel(Qwen2Vision(ENCODER), projector).eval().requires_grad_(False)
    for parameter in model.parameters():
        values = torch.randn(parameter.shape, generator=generator)
        parameter.copy_(values * (2 / parameter.shape[1]) ** 0.5 if parameter.ndim == 2 else 0.3 + 0.3 * values)
    return model


@pytest.fixture(scope="module")
def traced(vision: VisionModel) -> onnx.ModelProto:
    return ir.to_proto(trace_vision(vision, 56))


@pytest.mark.parametrize(("precision", "bound"), [("fp32", 1e-5), ("fp16", 1e-2), ("int8", 1e-1)])
def test_features_equal_torch_for_any_shape(
    vision: VisionModel, traced: onnx.ModelProto, precision: Precision, bound: float, tmp_path: Path
) -> None:
    with ExternalData(tmp_path / "vision.onnx_data") as data:
        write_vision(ir.from_proto(traced), precision, tmp_path / "vision.onnx", data)
    graph = session(tmp_path / "vision.onnx")
    for rows, columns in ((2, 3), (5, 1), (1, 1)):
        patches = torch.randn(4 * rows * columns, ENCODER.patch_values, generator=torch.Generator().manual_seed(rows))
        grid = torch.tensor([[1, 2 * rows, 2 * columns]])
        expected = vision(patches, grid).numpy()
        feed = {"pixel_values": patches.numpy(), "image_grid_thw": grid.numpy()}
        features = graph.run(["image_features"], feed)[0]
        assert features.shape == (1, rows * columns, 40)
        assert np.abs(features - expected).max() < bound * np.abs(expected).max()


def test_the_grid_decides_the_positions(vision: VisionModel) -> None:
    """The same patches as 2 x 3 and as 3 x 2 squares are two images."""
    patches = torch.randn(24, ENCODER.patch_values, generator=torch.Generator().manual_seed(0))
    wide, tall = (vision(patches, torch.tensor([[1, height, 24 // height]])) for height in (4, 6))
    assert not torch.allclose(wide, tall, atol=1e-3)


def test_two_traces_give_the_same_bytes(vision: VisionModel, traced: onnx.ModelProto) -> None:
    again = ir.to_proto(trace_vision(vision, 56))
    assert again.SerializeToString(deterministic=True) == traced.SerializeToString(deterministic=True)
