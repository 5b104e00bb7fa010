"""What static int8 gains the vision stage: our float32 graph and the same in int8, in both engines, in one run.

Full size: fastvlm-0.5b at 1024 pixels, and LLaVA-1.5's CLIP ViT-L at 336, random weights, all cores. Ranges come
from a few `scenes`. All four graphs of a model take turns, so that what slows the machine slows all. The bound is on
the better engine in int8 against the better engine in float32.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest

from edgevlm.bench.suite.pruned_vision import CLIP_L, SIZES, vision_side
from edgevlm.bench.suite.verdict import tell
from edgevlm.calibration.sources import open_calibration
from edgevlm.exporters.onnx.external import ExternalData
from edgevlm.exporters.onnx.static_int8 import trace_static
from edgevlm.exporters.onnx.vision import export_vision, write_vision
from edgevlm.models import VlmModel, load
from edgevlm.quant.vision import plan_vision
from edgevlm.runtimes.base import EngineOptions, Float32, VisionEngine
from edgevlm.runtimes.checks import thread_count
from edgevlm.runtimes.onnxruntime import OnnxRuntimeVision
from edgevlm.runtimes.openvino import OpenVinoVision

LEAST = 1.8
ROUNDS = 7
#: Questions about `scenes`, several an image.
CALIBRATION = 12
ENGINES: dict[str, Callable[[Path, Any, EngineOptions], VisionEngine]] = {
    "ONNX Runtime": OnnxRuntimeVision,
    "OpenVINO": OpenVinoVision,
}
#: A model, its graphs by precision, and what the plan says.
Graphs: TypeAlias = tuple[VlmModel, dict[str, Path], str]


@pytest.fixture(scope="module")
def graphs(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Graphs]:
    """A vision side in float32 and in static int8; each is made once."""

    @cache
    def make(name: str) -> Graphs:
        model = load(checkpoint)
        if name != "fastvlm-0.5b":
            model = _with_clip(model)
        size, folder = model.spec.vision.image_size, tmp_path_factory.mktemp(name)
        paths = {precision: folder / f"{precision}.onnx" for precision in ("fp32", "w8a8")}
        with ExternalData(folder / "fp32.onnx_data") as data:
            export_vision(model.vision, size, "fp32", paths["fp32"], data)
        plan = plan_vision(model, open_calibration("scenes", CALIBRATION), lambda *_: None)
        with ExternalData(folder / "w8a8.onnx_data") as data:
            write_vision(trace_static(model.vision, size, plan), "fp16", paths["w8a8"], data)
        said = f"{len(plan.layers)} layers on int8, {len(plan.kept)} kept in float, features off by {plan.error:.2%}"
        return model, paths, said

    return make


def _with_clip(model: VlmModel) -> VlmModel:
    """A model with LLaVA-1.5's vision side."""
    size = SIZES["llava-1.5-7b"]
    assert size.vision.encoder == CLIP_L
    spec = dataclasses.replace(
        model.spec,
        vision=size.vision,
        preprocess=dataclasses.replace(model.spec.preprocess, image_size=size.vision.image_size),
        decoder=dataclasses.replace(model.spec.decoder, hidden_size=size.hidden),
    )
    return dataclasses.replace(model, spec=spec, vision=vision_side(size).requires_grad_(False))


@pytest.mark.parametrize("name", ["fastvlm-0.5b", "llava-1.5-7b"])
def test_static_int8_against_float32(
    name: str, benchmark: Any, capsys: pytest.CaptureFixture[str], graphs: Callable[[str], Graphs]
) -> None:
    model, paths, said = graphs(name)
    options = EngineOptions(thread_count(0))
    engines = {
        (engine, precision): opener(path, model.spec, options)
        for engine, opener in ENGINES.items()
        for precision, path in paths.items()
    }
    random = np.random.default_rng(0)
    took: dict[tuple[str, str], list[float]] = {key: [] for key in engines}

    def next_image() -> tuple[tuple[Float32], dict[str, Any]]:
        pixels = random.random((1, *model.spec.vision.input_shape), np.float32)
        for key, engine in engines.items():
            start = time.perf_counter()
            engine.encode(pixels)
            took[key].append(1e3 * (time.perf_counter() - start))
        return (pixels,), {}

    benchmark.pedantic(engines["OpenVINO", "w8a8"].encode, setup=next_image, rounds=ROUNDS, warmup_rounds=1)
    for opened in engines.values():
        opened.close()
    ms = {key: statistics.median(times[1:]) for key, times in took.items()}
    for engine in ENGINES:
        whole, narrow = ms[engine, "fp32"], ms[engine, "w8a8"]
        figure = f"{whole:.0f} to {narrow:.0f} ms, {whole / narrow:.2f} times faster"
        tell(capsys, benchmark, f"{name}, vision in static int8, {engine}", figure, "no bound", met=True)
    whole, narrow = (min(ms[engine, precision] for engine in ENGINES) for precision in ("fp32", "w8a8"))
    figure = f"{whole:.0f} to {narrow:.0f} ms, {whole / narrow:.2f} times faster ({said})"
    tell(capsys, benchmark, f"{name}, the better engines", figure, f"at least {LEAST}", whole / narrow >= LEAST)
