"""The fusion graph in the standard dialect against the torch module."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from llava_mini_oracle import make_oracle, write_checkpoint
from standard_models import VERSIONS

from edgevlm.exporters.lint import Toolkit, lint_graph
from edgevlm.exporters.onnx.decoder import DecoderBuilder
from edgevlm.exporters.onnx.external import ExternalData
from edgevlm.exporters.onnx.fusion_standard import DecomposedFusionDialect, FusedFusionDialect, build_fusion
from edgevlm.exporters.onnx.graph import Graph
from edgevlm.exporters.tensorrt.schemes import tensorrt_scheme
from edgevlm.models import VlmModel, load
from edgevlm.recipe import Precision
from edgevlm.runtimes.base import EngineOptions
from edgevlm.runtimes.build_plan import ComputeType
from edgevlm.runtimes.onnxruntime import OnnxRuntimeFusion

LONGEST = 48
DIALECTS = {"fused": FusedFusionDialect, "decomposed": DecomposedFusionDialect}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> VlmModel:
    """With grouped queries and biases."""
    folder = tmp_path_factory.mktemp("checkpoint")
    return load(write_checkpoint(make_oracle(kind="qwen", compressor_size=2), folder, kind="qwen"))


@pytest.mark.parametrize("kind", DIALECTS)
@pytest.mark.parametrize(("precision", "least"), [("fp32", 0.999999), ("fp16", 0.9999), ("int8", 0.995), ("int4", 0.8)])
def test_it_equals_the_module(model: VlmModel, kind: str, precision: Precision, least: float, tmp_path: Path) -> None:
    assert model.fusion is not None
    rows, hidden = model.spec.vision.image_tokens, model.spec.decoder.hidden_size
    path = tmp_path / "fusion.onnx"
    compute: ComputeType = "float32" if precision == "fp32" else "float16"
    with ExternalData(tmp_path / "fusion.onnx_data") as data:
        graph = Graph("fusion", data, opset=DIALECTS[kind].opset, contrib=False)
        dialect = DIALECTS[kind](graph, model.fusion, rows, LONGEST, compute=compute)
        build_fusion(DecoderBuilder(model.fusion, dialect, precision, scheme=tensorrt_scheme))
    graph.save(path)
    onnx.checker.check_model(str(path), full_check=True)
    for toolkit in (Toolkit("tensorrt", VERSIONS[kind], (8, 7)), Toolkit("rtx", (1, 7), (8, 6))):
        findings = lint_graph(path, toolkit, ask=precision == "int4")
        assert not [finding for finding in findings if finding.blocks]
    engine = OnnxRuntimeFusion(path, model.spec, EngineOptions(threads=1))
    for length in (1, LONGEST):
        generator = np.random.default_rng(length)
        image, text = (generator.standard_normal((count, hidden), dtype=np.float32) for count in (rows, length))
        with torch.no_grad():
            expected = model.fusion(torch.from_numpy(image)[None], torch.from_numpy(text)[None])[0].numpy()
        found = engine.fuse(image, text)
        cosine = (found * expected).sum() / np.linalg.norm(found) / np.linalg.norm(expected)
        assert cosine > least
    engine.close()
