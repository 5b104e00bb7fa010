"""The vision graph against the torch module it was traced from."""

from collections import Counter
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from onnx_models import session

from edgevlm.exporters.onnx.external import ExternalData
from edgevlm.exporters.onnx.vision import trace_vision, write_vision
from edgevlm.models.fastvithd import FastViTHD
from edgevlm.models.projector import MlpProjector
from edgevlm.models.vlm import VisionModel
from edgevlm.quant import mse
from edgevlm.quant.sizes import vision_bytes
from edgevlm.quant.tensor import QuantScheme
from edgevlm.recipe import Precision
from edgevlm.spec import FastViTHDSpec, MlpProjectorSpec

ENCODER = FastViTHDSpec(depths=(1, 1, 1, 1, 1), dims=(8, 8, 16, 32, 32), head_dim=16, squeeze_channels=8)


@pytest.fixture(scope="module")
def vision() -> VisionModel:
    generator = torch.Generator().manual_seed(0)
    model = VisionModel(FastViTHD(ENCODER), MlpProjector(MlpProjectorSpec(48), 64, 40)).eval().requires_grad_(False)
    for parameter in model.parameters():
        values = torch.randn(parameter.shape, generator=generator)
        fan_in = parameter[0].numel() if parameter.ndim in (2, 4) else 0
        parameter.copy_(values * (2 / fan_in) ** 0.5 if fan_in else 0.3 + 0.3 * values)
    return model


@pytest.fixture(scope="module")
def traced(vision: VisionModel) -> dict[int, onnx.ModelProto]:
    """Tracing takes seconds: once a resolution."""
    return {resolution: ir.to_proto(trace_vision(vision, resolution)) for resolution in (64, 192)}


def written(trace: onnx.ModelProto, precision: Precision, folder: Path) -> tuple[Path, int]:
    path = folder / "vision.onnx"
    with ExternalData(folder / "vision.onnx_data") as data:
        weight_bytes = write_vision(ir.from_proto(trace), precision, path, data)
    return path, weight_bytes


def features(path: Path, pixels: torch.Tensor) -> NDArray[np.float32]:
    return np.asarray(session(path).run(["image_features"], {"pixel_values": pixels.numpy()})[0])


def relative_error(vision: VisionModel, path: Path, pixels: torch.Tensor) -> float:
    expected = vision(pixels).numpy()
    return float(np.abs(features(path, pixels) - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("resolution", [64, 192])
def test_float_features_equal_torch(
    vision: VisionModel, traced: dict[int, onnx.ModelProto], resolution: int, tmp_path: Path
) -> None:
    path, _ = written(traced[resolution], "fp32", tmp_path)
    pixels = torch.rand(2, 3, resolution, resolution, generator=torch.Generator().manual_seed(1))
    assert relative_error(vision, path, pixels) < 1e-5
    assert features(path, pixels).shape == (2, (resolution // 64) ** 2, 40)


@pytest.mark.parametrize(("precision", "bound", "bits"), [("fp16", 3e-3, 17.5), ("int8", 5e-2, 12), ("int4", 0.4, 10)])
def test_narrow_storage_keeps_the_features(
    vision: VisionModel,
    traced: dict[int, onnx.ModelProto],
    precision: Precision,
    bound: float,
    bits: float,
    tmp_path: Path,
) -> None:
    path, weight_bytes = written(traced[192], precision, tmp_path)
    pixels = torch.rand(1, 3, 192, 192, generator=torch.Generator().manual_seed(2))
    assert relative_error(vision, path, pixels) < bound
    assert 8 * weight_bytes / sum(parameter.numel() for parameter in vision.parameters()) < bits
    onnx.checker.check_model(str(path))


def test_bytes_counted_from_shapes_are_those_written(
    vision: VisionModel, traced: dict[int, onnx.ModelProto], tmp_path: Path
) -> None:
    """Budgets are kept by them."""
    for precision in get_args(Precision):
        _, weight_bytes = written(traced[64], precision, tmp_path)
        assert vision_bytes(vision, precision) == pytest.approx(weight_bytes, rel=0.01)


@pytest.mark.parametrize("shape", [(64, 6), (6, 64, 1, 1)])
def test_four_bit_weights_are_those_of_their_groups(shape: tuple[int, ...], tmp_path: Path) -> None:
    """Matrices lie the other way round than kernels; both dequantize to what was rounded, inside the graph."""
    array = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 20}, name="g")
    weight = ir.Value(
        name="w", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(shape), const_value=ir.tensor(array)
    )
    graph.register_initializer(weight)
    out = ir.node("Identity", [weight]).outputs[0]
    out.name, out.type, out.shape = "y", weight.type, weight.shape
    graph.append(out.producer())
    graph.outputs.append(out)
    with ExternalData(tmp_path / "g.data") as data:
        write_vision(ir.Model(graph, ir_version=10), "int4", tmp_path / "g.onnx", data)
    found = ort.InferenceSession(str(tmp_path / "g.onnx"), providers=["CPUExecutionProvider"]).run(None, {})[0]
    rows = array.T if len(shape) == 2 else array[..., 0, 0]
    expected = mse.quantize(torch.from_numpy(rows.copy()), QuantScheme(4, 32)).dequantize()
    np.testing.assert_array_equal(found.T if len(shape) == 2 else found[..., 0, 0], expected)


def test_every_activation_is_one_operator(
    vision: VisionModel, traced: dict[int, onnx.ModelProto], tmp_path: Path
) -> None:
    path, _ = written(traced[64], "fp32", tmp_path)
    model = onnx.load(str(path), load_external_data=False)
    onnx.checker.check_model(str(path))
    count = Counter(node.op_type for node in model.graph.node)
    gelus = sum(1 for module in vision.modules() if type(module).__name__ == "ConvFeedForward")
    gelus += 3 + 2 * 4 + 1 + 1  # stem, downsampling, expansion, projector
    assert count["Gelu"] == gelus
    assert count["LayerNormalization"] == count["Softmax"] == 2
    assert not count["Erf"] + count["BatchNormalization"] + count["Shape"]
    # Per attention: q, k and v taken apart, scores, mix, output.
    assert len(model.graph.node) < 2.2 * count["Conv"] + 60


def test_nothing_tells_where_it_was_made(traced: dict[int, onnx.ModelProto], tmp_path: Path) -> None:
    path, _ = written(traced[64], "fp32", tmp_path)
    content = path.read_bytes()
    for trace in (b".py", b"pkg.torch", b"FastViTHD", str(tmp_path).encode()):
        assert trace not in content
