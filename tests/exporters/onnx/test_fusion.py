"""The fusion graph and its engines against the torch module."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from llava_mini_oracle import make_oracle, write_checkpoint

from edgevlm.errors import EngineError
from edgevlm.exporters.onnx.external import ExternalData
from edgevlm.exporters.onnx.fusion import export_fusion
from edgevlm.models import VlmModel, load
from edgevlm.recipe import Precision
from edgevlm.runtimes.base import EngineOptions, Float32
from edgevlm.runtimes.onnxruntime import OnnxRuntimeFusion
from edgevlm.runtimes.torch import TorchFusion


@pytest.fixture(scope="module", params=["llama", "qwen"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> VlmModel:
    kind = request.param
    return load(write_checkpoint(make_oracle(kind=kind, compressor_size=2), tmp_path_factory.mktemp(kind), kind=kind))


def write(model: VlmModel, folder: Path, precision: Precision) -> Path:
    assert model.fusion is not None
    path = folder / "fusion.onnx"
    with ExternalData(folder / "fusion.onnx_data") as data:
        export_fusion(model.fusion, model.spec.vision.image_tokens, precision, path, data)
    return path


def inputs(model: VlmModel, length: int) -> tuple[Float32, Float32]:
    generator = np.random.default_rng(length)
    shapes = ((rows, model.spec.decoder.hidden_size) for rows in (model.spec.vision.image_tokens, length))
    image, text = (generator.standard_normal(shape, dtype=np.float32) for shape in shapes)
    return image, text


@pytest.mark.parametrize("length", [1, 3, 40])
def test_onnx_and_torch_engines_equal_the_module(model: VlmModel, length: int, tmp_path: Path) -> None:
    assert model.fusion is not None
    image, text = inputs(model, length)
    with torch.no_grad():
        expected = model.fusion(torch.from_numpy(image)[None], torch.from_numpy(text)[None])[0].numpy()
    assert expected.shape == (4 + length, 64)
    assert np.abs(expected[4:] - text).max() > 1
    engine = OnnxRuntimeFusion(write(model, tmp_path, "fp32"), model.spec, EngineOptions(threads=1))
    np.testing.assert_allclose(engine.fuse(image, text), expected, atol=2e-4)
    np.testing.assert_allclose(TorchFusion(model).fuse(image, text), expected, atol=1e-5)


@pytest.mark.parametrize(("precision", "least"), [("fp16", 0.99999), ("int8", 0.995), ("int4", 0.8)])
def test_narrow_weights_stay_close(model: VlmModel, precision: Precision, least: float, tmp_path: Path) -> None:
    path = write(model, tmp_path, precision)
    onnx.checker.check_model(str(path))
    exact, narrow = (
        engine.fuse(*inputs(model, 20)).ravel()
        for engine in (TorchFusion(model), OnnxRuntimeFusion(path, model.spec, EngineOptions(threads=1)))
    )
    assert least < float(np.corrcoef(exact, narrow)[0, 1]) < 1


def test_the_same_weights_give_the_same_bytes(model: VlmModel, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write(model, tmp_path / name, "int4")
    for file in ("fusion.onnx", "fusion.onnx_data"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_rows_that_are_not_the_graphs_are_an_engine_error(model: VlmModel, tmp_path: Path) -> None:
    engine = OnnxRuntimeFusion(write(model, tmp_path, "fp32"), model.spec, EngineOptions(threads=1))
    image, text = inputs(model, 3)
    with pytest.raises(EngineError, match="fusion graph failed"):
        engine.fuse(image[:-1], text)
