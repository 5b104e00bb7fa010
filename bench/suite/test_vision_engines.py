"""The vision engine that `auto` picks against plain ONNX Runtime in float32, on a full-size model, in one run.

Plain means what a first script does: the graph, exported in float32, in `onnxruntime.InferenceSession`, whose defaults
are kept but for the number of threads, which is the same. `auto` runs the default bundle. The bound holds where the CPU
multiplies bfloat16 natively.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from edgevlm.bench.suite.full_size import Exported
from edgevlm.bundle import open_bundle
from edgevlm.exporters.onnx.external import ExternalData
from edgevlm.exporters.onnx.vision import export_vision
from edgevlm.models import load
from edgevlm.runtimes.base import EngineOptions, Float32
from edgevlm.runtimes.checks import thread_count
from edgevlm.runtimes.select import open_vision
from edgevlm.targets.isa import cpu_features

LEAST = 3.5
NATIVE_BFLOAT16 = {"amx_bf16", "avx512_bf16"}
ROUNDS = 5


def _plain(checkpoint: Path, threads: int) -> Callable[[Float32], Float32]:
    model, folder = load(checkpoint), checkpoint.parent / "plain"
    folder.mkdir()
    with ExternalData(folder / "vision.onnx_data") as data:
        export_vision(model.vision, model.spec.vision.image_size, "fp32", folder / "vision.onnx", data)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(folder / "vision.onnx", options, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    return lambda pixels: np.asarray(session.run(None, {given.name: pixels})[0])


def test_auto_against_plain_onnxruntime(
    benchmark: Any, capsys: pytest.CaptureFixture[str], checkpoint: Path, exported: Exported
) -> None:
    threads, bundle = thread_count(0), open_bundle(exported("onnx", "int4").bundle)
    plain, engine = _plain(checkpoint, threads), open_vision(bundle, "auto", EngineOptions(threads))
    random = np.random.default_rng(0)
    reference: list[float] = []

    def next_image() -> tuple[tuple[Float32], dict[str, Any]]:
        pixels = random.random((1, *bundle.spec.vision.input_shape), np.float32)
        start = time.perf_counter()
        plain(pixels)
        reference.append(1e3 * (time.perf_counter() - start))
        return (pixels,), {}

    benchmark.pedantic(engine.encode, setup=next_image, rounds=ROUNDS, warmup_rounds=1)
    ratio = statistics.median(reference[1:]) / (1e3 * benchmark.stats.stats.median)
    name = engine.stats().name
    engine.close()
    verdict = "bound n/a here: no AMX and no AVX512-BF16"
    if NATIVE_BFLOAT16 & set(cpu_features()):
        verdict = f"at least {LEAST}: {'met' if ratio >= LEAST else 'NOT MET'}"
    benchmark.extra_info.update(auto=name, speed_over_plain_onnxruntime=round(ratio, 4))
    with capsys.disabled():
        print(f"\n  vision, auto ({name}) over plain ONNX Runtime fp32: {ratio:.3f} ({verdict})")
