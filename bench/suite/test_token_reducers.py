"""What choosing visual tokens costs: each reducer alone as an ONNX graph, 64 tokens kept, on one core.

The shapes are those of fastvlm-0.5b (256 tokens) and of the vision side of llava-1.5-7b (576). A reducer may take 5% of
the time of the vision side that it stands in, measured in the same run on the same core; the projector's work that a
selection in front of it saves is not counted.
"""

from __future__ import annotations

import time
from functools import cache
from pathlib import Path
from typing import Any

import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from edgevlm.bench.suite.pruned_vision import CASES, IDS, MOST, SIZES, Size, reducer, session, standalone, vision_side
from edgevlm.bench.suite.verdict import tell
from edgevlm.exporters.onnx.external import ExternalData
from edgevlm.exporters.onnx.vision import export_vision
from edgevlm.models.taps import QueryKey, Taps
from edgevlm.pruning.tokens.reducer import Reducer

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


def _reducer_graph(size: Size, name: str, path: Path) -> tuple[ort.InferenceSession, dict[str, Any]]:
    """The graph of one reducer and its inputs."""
    torch.manual_seed(0)
    method = reducer(size, name)
    channels = size.vision.feature_size if method.before_projector else size.hidden
    tokens = size.vision.image_tokens
    shown = torch.randn(2 * len(method.layers), 1, size.heads, tokens + size.class_tokens, size.head_size)
    return standalone(Alone(method), (torch.randn(1, tokens, channels), torch.randn(1, 1, channels), *shown), path)


@pytest.fixture(scope="module")
def vision_ms(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Milliseconds of a vision side of random weights, in float32 on one core."""

    @cache
    def measure(name: str) -> float:
        resolution, folder = SIZES[name].vision.image_size, tmp_path_factory.mktemp("vision")
        with ExternalData(folder / "vision.data") as data:
            export_vision(vision_side(SIZES[name]), resolution, "fp32", folder / "vision.onnx", data)
        graph = session(folder / "vision.onnx", 1)
        pixels = torch.rand(1, 3, resolution, resolution).numpy()
        seconds = []
        for _ in range(VISION_ROUNDS):
            start = time.perf_counter()
            graph.run(None, {"pixel_values": pixels})
            seconds.append(time.perf_counter() - start)
        return 1e3 * min(seconds)

    return measure


@pytest.mark.parametrize(("size", "name"), CASES, ids=IDS)
def test_cost_of_choosing(
    size: str, name: str, benchmark: Any, vision_ms: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    graph, inputs = _reducer_graph(SIZES[size], name, tmp_path / "reducer.onnx")
    benchmark.pedantic(lambda: graph.run(None, inputs), rounds=ROUNDS, warmup_rounds=2)
    cost, whole = 1e3 * benchmark.stats.stats.min, vision_ms(size)
    figure = f"{cost:.2f} ms of {whole:.0f} ms, {cost / whole:.2%}"
    tell(capsys, benchmark, f"{size}, {name}", figure, f"at most {MOST:.0%}", cost <= MOST * whole)
