"""The vision graph in static int8: what ONNX Runtime and OpenVINO make of it, and what stands in it."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import openvino
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from onnx_models import session
from pruned_models import run
from static_vision import ENCODERS, planned, vlm

from edgevlm import reference
from edgevlm.exporters.onnx.external import ExternalData
from edgevlm.exporters.onnx.static_int8 import trace_static
from edgevlm.exporters.onnx.vision import write_vision
from edgevlm.models.vlm import VlmModel
from edgevlm.preprocess import preprocess
from edgevlm.pruning.tokens.prune_tokens import PruneTokens
from edgevlm.quant.vision import StaticPlan
from edgevlm.quant.vision.kept import rounded
from edgevlm.quant.vision.layers import output_scales
from edgevlm.recipe import Precision
from edgevlm.zoo.scenes import scenes


def written(model: VlmModel, plan: StaticPlan, folder: Path, precision: Precision = "fp16") -> tuple[Path, int]:
    """The graph's file, and its bytes of weights; `precision` is that of what stays in float."""
    path = folder / "vision.onnx"
    with ExternalData(folder / "vision.onnx_data") as data:
        graph = trace_static(model.vision, model.spec.vision.image_size, plan)
        weight_bytes = write_vision(graph, precision, path, data)
    return path, weight_bytes


def pixels(model: VlmModel) -> NDArray[np.float32]:
    """Two scenes of the test set."""
    pictures = {item.image_id: item.image for item in scenes("test", 12)}
    return np.concatenate([preprocess(image, model.spec.preprocess) for image in list(pictures.values())[:2]])


def by_onnxruntime(path: Path, images: NDArray[np.float32], *, fused: bool = True) -> NDArray[np.float32]:
    """Unfused, each operator is computed as ONNX defines it."""
    if fused:
        return np.asarray(session(path).run(None, {"pixel_values": images})[0])
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    plain = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return np.asarray(plain.run(None, {"pixel_values": images})[0])


def by_openvino(path: Path, images: NDArray[np.float32]) -> NDArray[np.float32]:
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    return np.array(openvino.Core().compile_model(path, "CPU", settings)([images])[0])


def by_torch(model: VlmModel, images: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.concatenate(reference.image_features(model, [image[None] for image in images]))


def error(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


@pytest.fixture(scope="module", params=ENCODERS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[VlmModel, StaticPlan, Path]:
    """Planning and tracing take seconds: once an encoder."""
    model = vlm(request.param)
    plan = planned(model)
    path, weight_bytes = written(model, plan, tmp_path_factory.mktemp(request.param))
    (path.parent / "bytes").write_text(str(weight_bytes))
    return model, plan, path


def test_both_engines_round_as_planned(case: tuple[VlmModel, StaticPlan, Path], tmp_path: Path) -> None:
    model, plan, _ = case
    # Half precision in front of the first layer would tip values over the edge between two codes.
    path, _ = written(model, plan, tmp_path, "fp32")
    images = pixels(model)
    planned_features, exact = by_torch(rounded(model, plan.layers), images), by_torch(model, images)
    noise = error(planned_features, exact)
    assert 1e-3 < noise < 0.06
    # As ONNX defines the operators, and as OpenVINO fuses them, every code is the planned one.
    assert error(by_onnxruntime(path, images, fused=False), planned_features) < 0.1 * noise
    assert error(by_openvino(path, images), planned_features) < 0.1 * noise
    # ONNX Runtime rounds the bias of an int8 convolution, too.
    assert error(by_onnxruntime(path, images), exact) < 1.4 * noise


def test_all_is_symmetric_int8(case: tuple[VlmModel, StaticPlan, Path]) -> None:
    _, plan, path = case
    model = onnx.load(str(path))
    onnx.checker.check_model(str(path))
    constants = {value.name: numpy_helper.to_array(value) for value in model.graph.initializer}
    assert not any(value.data_type == TensorProto.UINT8 for value in model.graph.initializer)
    makers = {output: node for node in model.graph.node for output in node.output}
    kinds = Counter(node.op_type for node in model.graph.node)
    rounding = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    for node in rounding:
        scale, zero = constants[node.input[1]], constants[node.input[2]]
        assert zero.dtype == np.int8
        assert not zero.any()
        assert (scale > 0).all()
        # Per tensor for activations, an output channel each for weights.
        assert scale.ndim == (1 if node.input[0] in constants else 0)
    on_int8 = 0
    for node in model.graph.node:
        sources = [makers[name].op_type for name in node.input if name in makers]
        if sources.count("DequantizeLinear") == 2:
            assert node.op_type in ("MatMul", "Conv")
            on_int8 += 1
    assert on_int8 == len(plan.layers)
    assert kinds["QuantizeLinear"] <= len(plan.layers) + kinds["Conv"]


def test_layer_scale_is_gone(case: tuple[VlmModel, StaticPlan, Path]) -> None:
    model, _, path = case
    graph = onnx.load(str(path), load_external_data=False).graph
    names = {value.name for value in graph.initializer}
    scales = output_scales(model.vision)
    assert not names & set(scales)
    wanted = {"fastvithd": 9, "internvit": 6}
    assert len(scales) == wanted.get(path.parent.name.rstrip("0123456789"), 0)


def test_bytes_are_those_of_the_file(case: tuple[VlmModel, StaticPlan, Path]) -> None:
    model, _, path = case
    counted = int((path.parent / "bytes").read_text())
    graph = onnx.load(str(path)).graph
    kinds = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT8)
    stored = sum(numpy_helper.to_array(value).nbytes for value in graph.initializer if value.data_type in kinds)
    assert counted == stored
    weights = sum(parameter.numel() for parameter in model.vision.parameters())
    assert 8 < 8 * counted / weights < 17


def test_the_same_plan_gives_the_same_bytes(tmp_path: Path) -> None:
    model = vlm("clip")
    files = []
    for name in "ab":
        (tmp_path / name).mkdir()
        path, _ = written(model, planned(model), tmp_path / name)
        files.append(path.read_bytes() + path.with_name("vision.onnx_data").read_bytes())
    assert files[0] == files[1]


def test_tokens_are_still_chosen_inside(tmp_path: Path) -> None:
    model = vlm("clip")
    fewer = run(PruneTokens, model, None, method="fastervlm", keep=9)
    plan = planned(fewer)
    path, _ = written(fewer, plan, tmp_path, "fp32")
    images = pixels(model)
    expected = by_torch(rounded(fewer, plan.layers), images)
    assert expected.shape[1] == 9
    assert error(by_onnxruntime(path, images), expected) < 0.02
    assert error(by_openvino(path, images), expected) < 0.02


def test_a_layer_kept_in_float_is_no_int8(tmp_path: Path) -> None:
    model = vlm("siglip")
    plan = planned(model)
    name = "encoder.layers.0.fc2"
    fewer = replace(plan, layers={key: layer for key, layer in plan.layers.items() if key != name}, kept=(name,))
    path, _ = written(model, fewer, tmp_path)
    initializers = {value.name for value in onnx.load(str(path), load_external_data=False).graph.initializer}
    assert f"{name}.weight.codes" not in initializers
    assert "encoder.layers.0.fc1.weight.codes" in initializers
    images = pixels(model)
    exact = by_torch(model, images)
    assert error(by_onnxruntime(path, images), exact) < error(by_torch(rounded(model, plan.layers), images), exact)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    model = vlm("siglip")
    plan = planned(model)
    weight = model.vision.get_parameter("encoder.layers.1.fc1.weight")
    weight[0, 0] = float("inf")
    with pytest.raises(ValueError, match="not finite"):
        written(model, plan, tmp_path)
    assert torch.isinf(weight).any()
