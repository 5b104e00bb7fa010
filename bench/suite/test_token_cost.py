"""What pruning visual tokens adds to the vision stage: the exported graph with each reducer and without, by turns.

Full size, random weights, 64 tokens kept, half-precision weights as a bundle has them, all cores. What a reducer saves
the projector counts, so that the cost may be negative. Reducers alone, to the tenth of a millisecond, are in
`test_token_reducers.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import onnxruntime as ort
import pytest
import torch

from edgevlm.bench.suite.pruned_vision import CASES, IDS, KEEP, MOST, SIZES, reducer, session, standalone, vision_side
from edgevlm.bench.suite.verdict import tell
from edgevlm.exporters.onnx.external import ExternalData
from edgevlm.exporters.onnx.vision import export_vision
from edgevlm.models.vlm import VisionModel
from edgevlm.pruning.tokens.farthest import farthest_points
from edgevlm.pruning.tokens.selecting import products, unit
from edgevlm.runtimes.checks import thread_count

ROUNDS = 5
#: Milliseconds that DivPrune's choice of 64 among 576 may take on one core.
SELECTION_MS = 10.0


def _export(model: VisionModel, resolution: int, folder: Path) -> ort.InferenceSession:
    with ExternalData(folder / "vision.onnx_data") as data:
        export_vision(model, resolution, "fp16", folder / "vision.onnx", data)
    return session(folder / "vision.onnx", thread_count(0))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[VisionModel, ort.InferenceSession]]:
    """A vision side and its graph without a reducer; one at a time is kept."""
    kept: dict[str, tuple[VisionModel, ort.InferenceSession]] = {}

    def make(name: str) -> tuple[VisionModel, ort.InferenceSession]:
        if name not in kept:
            kept.clear()
            model = vision_side(SIZES[name])
            kept[name] = model, _export(model, SIZES[name].vision.image_size, tmp_path_factory.mktemp("plain"))
        return kept[name]

    return make


@pytest.mark.parametrize(("size", "name"), CASES, ids=IDS)
def test_cost_in_the_exported_graph(
    size: str, name: str, benchmark: Any, plain: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, without = plain(size)
    pixels = SIZES[size].vision.image_size
    pruned = VisionModel(model.encoder, model.projector, model.shuffle, reducer(SIZES[size], name)).eval()
    graph = _export(pruned, pixels, tmp_path)
    image = {"pixel_values": torch.rand(1, 3, pixels, pixels).numpy()}
    (found,) = graph.run(None, image)
    assert found.shape[1] == KEEP
    took: list[float] = []

    def before_each() -> None:
        start = time.perf_counter()
        without.run(None, image)
        took.append(time.perf_counter() - start)

    benchmark.pedantic(graph.run, (None, image), setup=before_each, rounds=ROUNDS, warmup_rounds=1)
    whole, with_it = 1e3 * min(took), 1e3 * benchmark.stats.stats.min
    added = with_it - whole
    figure = f"{whole:.0f} to {with_it:.0f} ms, {added / whole:+.2%}"
    tell(capsys, benchmark, f"{size}, {name}:{KEEP}", figure, f"at most {MOST:+.0%}", added <= MOST * whole)


class _Choose(torch.nn.Module):
    """Cosine distances `[1, N, N]` to indexes."""

    def forward(self, distances: torch.Tensor) -> torch.Tensor:
        return farthest_points(distances, KEEP)  # type: ignore[no-any-return]


class _Compare(torch.nn.Module):
    """Tokens `[1, N, C]` to indexes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return farthest_points((1 - products(unit(x))).clamp(min=0), KEEP)  # type: ignore[no-any-return]


@cache
def _tokens(channels: int) -> torch.Tensor:
    return torch.randn(1, 576, channels, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("what", "module", "channels"),
    [
        ("choosing, distances given", _Choose(), 0),
        ("with the cosines of features, 1024 channels", _Compare(), 1024),
        ("with the cosines of embeddings, 4096 channels", _Compare(), 4096),
    ],
    ids=["choosing", "features", "embeddings"],
)
def test_divprune_on_one_core(
    what: str,
    module: torch.nn.Module,
    channels: int,
    benchmark: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = _tokens(channels) if channels else (1 - products(unit(_tokens(1024)))).clamp(min=0)
    graph, inputs = standalone(module, (given,), tmp_path / "choose.onnx")
    benchmark.pedantic(lambda: graph.run(None, inputs), rounds=40, warmup_rounds=3)
    least = 1e3 * benchmark.stats.stats.min
    bound = f"under {SELECTION_MS:.0f} ms"
    tell(capsys, benchmark, f"divprune, {KEEP} of 576, {what}", f"{least:.2f} ms", bound, least < SELECTION_MS)
