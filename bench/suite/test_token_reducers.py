"""What choosing visual tokens costs: each reducer alone as an ONNX graph, 64 tokens kept, on one core.

The shapes are those of fastvlm-0.5b (256 tokens) and of the vision side of llava-1.5-7b (576). A reducer may take 5% of
the time of the vision side that it stands in, measured in the same run on the same core; the projector's work that a
selection in front of it saves is not counted.
"""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from edgevlm.exporters.onnx.external import ExternalData
from edgevlm.exporters.onnx.vision import OPSET, export_vision
from edgevlm.exporters.onnx.vision_ops import TRANSLATIONS
from edgevlm.models.projector import build_projector
from edgevlm.models.taps import QueryKey, Taps
from edgevlm.models.vlm import VisionModel, build_encoder
from edgevlm.pruning.tokens import REDUCERS
from edgevlm.pruning.tokens.reducer import Reducer
from edgevlm.spec import FastViTHDSpec, MlpProjectorSpec, VisionSpec, VitSpec

KEEP, MOST = 64, 0.05
CLIP_L = VitSpec(1024, 4096, 23, 16, 14, 24, 1e-5, activation="quick_gelu", class_token=True, pre_norm=True)


@dataclass(frozen=True)
class Size:
    """A vision side: its numbers, channels of an embedding, and the queries of the layers that reducers look at."""

    vision: VisionSpec
    hidden: int
    heads: int
    head_size: int
    class_tokens: int


SIZES = {
    "fastvlm-0.5b": Size(VisionSpec(FastViTHDSpec(), MlpProjectorSpec(896), 1024, 256), 896, 48, 32, 0),
    "llava-1.5-7b": Size(VisionSpec(CLIP_L, MlpProjectorSpec(4096), 336, 576), 4096, 16, 64, 1),
}
IN_GRAPH = [name for name, cls in REDUCERS.items() if issubclass(cls, Reducer) and name != "resolution"]
CASES = [(size, name) for size in SIZES for name in IN_GRAPH if SIZES[size].class_tokens or not REDUCERS[name].uses_cls]
ROUNDS, VISION_ROUNDS = 20, 3


class Alone(nn.Module):
    """A reducer that is handed what an encoder would show it."""

    def __init__(self, reducer: Reducer[Any]) -> None:
        super().__init__()
        self.reducer = reducer

    def forward(self, x: Tensor, class_feature: Tensor, *shown: Tensor) -> Tensor:
        """Tokens `[1, N, C]`, the class token's output, and queries and keys of each layer in turn."""
        taps = Taps(self.reducer.layers)
        taps.class_feature = class_feature
        pairs = zip(shown[::2], shown[1::2], strict=True)
        taps.found = {layer: QueryKey(*pair) for layer, pair in zip(self.reducer.layers, pairs, strict=True)}
        return self.reducer(x, taps)  # type: ignore[no-any-return]


def _session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _reducer_graph(size: Size, name: str, path: Path) -> tuple[ort.InferenceSession, dict[str, Any]]:
    """The graph of one reducer and its inputs."""
    torch.manual_seed(0)
    method = REDUCERS[name]
    assert issubclass(method, Reducer)
    reducer = method(size.vision, KEEP, method.Options()).eval()
    channels = size.vision.feature_size if reducer.before_projector else size.hidden
    tokens = size.vision.image_tokens
    shown = torch.randn(2 * len(reducer.layers), 1, size.heads, tokens + size.class_tokens, size.head_size)
    inputs = (torch.randn(1, tokens, channels), torch.randn(1, 1, channels), *shown)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            Alone(reducer),
            inputs,
            dynamo=True,
            opset_version=OPSET,
            custom_translation_table=TRANSLATIONS,
            verbose=False,
        )
    assert program is not None
    program.save(path)
    session = _session(path)
    names = [value.name for value in program.model.graph.inputs]
    given = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
    return session, {value.name: given[value.name] for value in session.get_inputs()}


@pytest.fixture(scope="module")
def vision_ms(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Milliseconds of a vision side of random weights, in float32 on one core."""

    @cache
    def measure(name: str) -> float:
        size, folder = SIZES[name], tmp_path_factory.mktemp("vision")
        torch.manual_seed(0)
        model = VisionModel(build_encoder(size.vision.encoder), build_projector(size.vision, size.hidden)).eval()
        with ExternalData(folder / "vision.data") as data:
            export_vision(model, size.vision.image_size, "fp32", folder / "vision.onnx", data)
        session = _session(folder / "vision.onnx")
        pixels = torch.rand(1, 3, size.vision.image_size, size.vision.image_size).numpy()
        seconds = []
        for _ in range(VISION_ROUNDS):
            start = time.perf_counter()
            session.run(None, {"pixel_values": pixels})
            seconds.append(time.perf_counter() - start)
        return 1e3 * min(seconds)

    return measure


@pytest.mark.parametrize(("size", "name"), CASES, ids=[f"{size}-{name}" for size, name in CASES])
def test_cost_of_choosing(
    size: str, name: str, benchmark: Any, vision_ms: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    session, inputs = _reducer_graph(SIZES[size], name, tmp_path / "reducer.onnx")
    benchmark.pedantic(lambda: session.run(None, inputs), rounds=ROUNDS, warmup_rounds=2)
    cost, whole = 1e3 * benchmark.stats.stats.min, vision_ms(size)
    verdict = f"at most {MOST:.0%}: {'met' if cost <= MOST * whole else 'NOT MET'}"
    benchmark.extra_info.update(vision_ms=round(whole, 1), share=round(cost / whole, 5))
    with capsys.disabled():
        print(f"\n  {size}, {name}: {cost:.2f} ms of {whole:.0f} ms, {cost / whole:.2%} ({verdict})")
