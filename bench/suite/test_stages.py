"""Each stage of the nano model alone: export, load, preprocess, vision, prefill, decode, and the report's pages.

Seconds in all, so that a change shows that the minutes of the full-size rows would hide. What the session adds to a
token is in `test_session_overhead.py`.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest

import edgevlm
from edgevlm.bench.images import photo_like
from edgevlm.bench.reading import read_report
from edgevlm.bench.render.report_html import render_html
from edgevlm.bench.render.report_markdown import render_markdown
from edgevlm.bench.report import Report
from edgevlm.bench.suite.decoder_rounds import prompt
from edgevlm.bench.suite.full_size import export
from edgevlm.bundle import Bundle, open_bundle
from edgevlm.models import load, resolve
from edgevlm.preprocess import preprocess
from edgevlm.recipe import Recipe
from edgevlm.runtimes.base import DecoderEngine, EngineOptions
from edgevlm.runtimes.select import VISION_ENGINES, open_decoder, open_vision

MODEL = "zoo:nano-fastvlm"
FORMATS = ("onnx", "gguf")
CONTEXT, POSITIONS, ROUNDS = 256, 80, 20
#: Rows of the rendered report.
REPORT_ROWS = 100
Nano: TypeAlias = Callable[[str], Bundle]


@pytest.fixture(scope="module")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Nano:
    """The nano model's int4 bundle in a format, made once."""

    @cache
    def once(kind: str) -> Bundle:
        recipe = Recipe.from_sources(None, {"model": MODEL, "format": kind, "precision": "int4"})
        return open_bundle(export(recipe, tmp_path_factory.mktemp("nano") / kind).bundle)

    return once


@pytest.mark.parametrize("kind", FORMATS)
def test_export(benchmark: Any, nano: Nano, kind: str) -> None:
    """In a process of its own, verification included."""
    benchmark.pedantic(nano, (kind,), rounds=1)


def test_load_checkpoint(benchmark: Any) -> None:
    benchmark.pedantic(load, (resolve(MODEL),), rounds=5, warmup_rounds=1)


@pytest.mark.parametrize("kind", FORMATS)
def test_load_bundle(benchmark: Any, nano: Nano, kind: str) -> None:
    """Tokenizer and engines; libraries are imported and the fastest engine is known."""
    path = nano(kind).path
    benchmark.pedantic(lambda: edgevlm.load(path).close(), rounds=5, warmup_rounds=1)


@pytest.mark.parametrize("size", [(1024, 768), (4000, 3000)], ids=["1024x768", "4000x3000"])
def test_preprocess(benchmark: Any, nano: Nano, size: tuple[int, int]) -> None:
    """From the file's bytes to pixels."""
    photo, spec = photo_like(0, 0, *size), nano("onnx").spec.preprocess
    pixels = benchmark.pedantic(preprocess, (photo, spec), rounds=5, warmup_rounds=1)
    assert pixels.shape == (1, 3, spec.image_size, spec.image_size)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_vision(benchmark: Any, nano: Nano, name: str) -> None:
    if not VISION_ENGINES[name].installed:
        pytest.skip(f"{name} is not installed")
    bundle = nano("onnx")
    engine = open_vision(bundle, name, EngineOptions())
    random = np.random.default_rng(0)

    def image() -> tuple[tuple[Any], dict[str, Any]]:
        return (random.random((1, *bundle.spec.vision.input_shape), np.float32),), {}

    benchmark.pedantic(engine.encode, setup=image, rounds=ROUNDS, warmup_rounds=2)
    engine.close()


@pytest.fixture(params=FORMATS)
def decoder(request: pytest.FixtureRequest, nano: Nano) -> Iterator[DecoderEngine]:
    engine = open_decoder(nano(request.param), "auto", EngineOptions(0, CONTEXT))
    yield engine
    engine.close()


def test_prefill(benchmark: Any, decoder: DecoderEngine) -> None:
    ids = prompt(POSITIONS)
    benchmark.pedantic(lambda: decoder.prefill([ids]), setup=decoder.reset, rounds=ROUNDS, warmup_rounds=2)


def test_decode(benchmark: Any, decoder: DecoderEngine) -> None:
    decoder.prefill([prompt(POSITIONS)])
    benchmark.pedantic(lambda: decoder.decode(1), rounds=5 * ROUNDS, warmup_rounds=2)


@pytest.fixture(scope="module")
def report(nano: Nano, tmp_path_factory: pytest.TempPathFactory) -> Report:
    """A report of many rows, all of them those of one short run."""
    out = tmp_path_factory.mktemp("report")
    command = [sys.executable, "-m", "edgevlm", "bench", str(nano("onnx").path), "-o", str(out), "--min-time", "0"]
    subprocess.run([*command, "--idle-time", "0"], check=True, capture_output=True)
    (report,) = [read_report(out / "report.json").report]
    rows = [row.model_copy(update={"name": f"row {number}"}) for number in range(REPORT_ROWS) for row in report.rows]
    return report.model_copy(update={"rows": rows})


@pytest.mark.parametrize("render", [render_html, render_markdown])
def test_render(benchmark: Any, report: Report, render: Callable[[Report], str]) -> None:
    page = benchmark.pedantic(render, (report,), rounds=5, warmup_rounds=1)
    assert f"row {REPORT_ROWS - 1}" in page


def test_read_report(benchmark: Any, report: Report, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(report.model_dump_json())
    benchmark.pedantic(read_report, (tmp_path / "report.json",), rounds=5, warmup_rounds=1)
