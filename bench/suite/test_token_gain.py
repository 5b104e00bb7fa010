"""What pruning visual tokens gains at full size: fastvlm-0.5b with 64 of 256 image tokens, and at 512 of 1024 pixels.

Both sides of a ratio take turns on all cores. The prompt is the image among 30 tokens of text; which 64 tokens are kept
makes no difference to the decoder.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgevlm.bench.suite.int4_decoder import write_int4
from edgevlm.bench.suite.verdict import tell
from edgevlm.exporters import gguf
from edgevlm.exporters.onnx.external import ExternalData
from edgevlm.exporters.onnx.vision import export_vision
from edgevlm.models import load
from edgevlm.runtimes.base import DecoderEngine, EngineOptions, Segment, VisionEngine
from edgevlm.runtimes.checks import thread_count
from edgevlm.runtimes.llama_cpp import LlamaCppDecoder
from edgevlm.runtimes.onnxruntime import OnnxRuntimeDecoder, OnnxRuntimeVision
from edgevlm.runtimes.openvino import OpenVinoVision

TOKENS, KEEP = 256, 64
LEAST_PREFILL, LEAST_VISION = 2.5, 3.5
ROUNDS = 7
VISION_ENGINES: dict[str, Callable[[Path, Any, EngineOptions], VisionEngine]] = {
    "onnxruntime": OnnxRuntimeVision,
    "openvino": OpenVinoVision,
}


def _prompt(tokens: int, hidden: int) -> list[Segment]:
    """Text, an image, text."""
    rng = np.random.default_rng(0)
    image = rng.standard_normal((tokens, hidden)).astype(np.float32)
    return [np.arange(14, dtype=np.int32), image, np.arange(16, dtype=np.int32)]


@pytest.fixture
def decoder(request: pytest.FixtureRequest, checkpoint: Path, tmp_path: Path) -> Any:
    """The decoder of the full-size checkpoint in four bits: an ONNX graph, or a GGUF."""
    model, options = load(checkpoint), EngineOptions(thread_count(0), 512)
    engine: DecoderEngine
    if request.param == "gguf":
        (artifact,) = gguf.export(model, tmp_path, gguf_type="q4_0", progress=lambda *_: None)
        engine = LlamaCppDecoder(tmp_path / artifact.path, model.spec.decoder, options)
    else:
        write_int4(model.decoder, tmp_path)
        engine = OnnxRuntimeDecoder(tmp_path / "decoder", tmp_path / "embed", model.spec, options)
    yield request.param, engine, model.spec.decoder.hidden_size
    engine.close()


@pytest.mark.parametrize("decoder", ["onnx", "gguf"], indirect=True)
def test_prefill_of_fewer_tokens(
    benchmark: Any, capsys: pytest.CaptureFixture[str], decoder: tuple[str, DecoderEngine, int]
) -> None:
    name, engine, hidden = decoder
    whole, fewer, took = _prompt(TOKENS, hidden), _prompt(KEEP, hidden), []

    def before_each() -> None:
        engine.reset()
        start = time.perf_counter()
        engine.prefill(whole)
        took.append(time.perf_counter() - start)
        engine.reset()

    benchmark.pedantic(engine.prefill, (fewer,), setup=before_each, rounds=ROUNDS, warmup_rounds=1)
    _tell(capsys, benchmark, f"prefill, {name}, {KEEP} of {TOKENS} tokens", took[1:], LEAST_PREFILL)


@pytest.fixture(scope="module")
def graph(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], tuple[Path, Any]]:
    """The vision graph for a resolution, as a bundle has it, and the model's numbers."""

    @cache
    def make(resolution: int) -> tuple[Path, Any]:
        model, folder = load(checkpoint, resolution=resolution), tmp_path_factory.mktemp("vision")
        with ExternalData(folder / "vision.onnx_data") as data:
            export_vision(model.vision, resolution, "fp16", folder / "vision.onnx", data)
        return folder / "vision.onnx", model.spec

    return make


@pytest.mark.parametrize("name", VISION_ENGINES)
def test_vision_of_smaller_images(
    benchmark: Any, capsys: pytest.CaptureFixture[str], graph: Callable[[int], tuple[Path, Any]], name: str
) -> None:
    engines = {size: VISION_ENGINES[name](*graph(size), EngineOptions(thread_count(0))) for size in (1024, 512)}
    random = np.random.default_rng(0)
    pixels = {size: random.random((1, 3, size, size), np.float32) for size in engines}
    took: list[float] = []

    def before_each() -> None:
        start = time.perf_counter()
        engines[1024].encode(pixels[1024])
        took.append(time.perf_counter() - start)

    benchmark.pedantic(engines[512].encode, (pixels[512],), setup=before_each, rounds=ROUNDS, warmup_rounds=1)
    _tell(capsys, benchmark, f"vision, {name}, 512 of 1024 pixels", took[1:], LEAST_VISION)
    for engine in engines.values():
        engine.close()


def _tell(capsys: pytest.CaptureFixture[str], benchmark: Any, what: str, whole: list[float], least: float) -> None:
    """The ratio of medians."""
    full, less = statistics.median(whole), benchmark.stats.stats.median
    figure = f"{1e3 * full:.0f} to {1e3 * less:.0f} ms, {full / less:.2f} times faster"
    tell(capsys, benchmark, what, figure, f"at least {least}", full / less >= least)
