"""Our int4 ONNX decoder against the one onnxruntime-genai's own builder makes of the same weights, in one run."""

import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgevlm.bench.suite import genai
from edgevlm.bench.suite.full_size import Exported
from edgevlm.bundle import open_bundle
from edgevlm.runtimes.base import EngineOptions
from edgevlm.runtimes.checks import thread_count
from edgevlm.runtimes.onnxruntime import OnnxRuntimeDecoder

pytest.importorskip("onnxruntime_genai", reason="pip install --no-deps onnxruntime-genai==0.18.0")

PROMPT = np.random.default_rng(0).integers(0, 1000, 286).astype(np.int32)
CONTEXT = 1024
STEPS = 32
ROUNDS = 7


def _engine(exported: Exported) -> Iterator[OnnxRuntimeDecoder]:
    bundle = open_bundle(exported("onnx").bundle)
    graphs = bundle.artifact("decoder", ".onnx"), bundle.artifact("embed", ".onnx")
    decoder = OnnxRuntimeDecoder(*graphs, bundle.spec, EngineOptions(thread_count(0), CONTEXT))
    decoder.prefill([PROMPT])
    yield decoder
    decoder.close()


@pytest.fixture(scope="module")
def engine(exported: Exported) -> Iterator[OnnxRuntimeDecoder]:
    yield from _engine(exported)


@pytest.fixture(scope="module")
def later_engine(loop: genai.GenaiLoop, exported: Exported) -> Iterator[OnnxRuntimeDecoder]:  # noqa: ARG001
    """One that is loaded behind theirs: which model is loaded first alone makes some percent of difference."""
    yield from _engine(exported)


@pytest.fixture(scope="module")
def loop(checkpoint: Path, exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> genai.GenaiLoop:
    spec = open_bundle(exported("onnx").bundle).spec.decoder
    folder = genai.build(checkpoint, spec, tmp_path_factory.mktemp("genai"))
    plain = genai.GenaiLoop(folder, thread_count(0), CONTEXT)
    plain.round(PROMPT, 4)
    return plain


def tell(capsys: pytest.CaptureFixture[str], benchmark: Any, what: str, theirs: list[float], ours: list[float]) -> None:
    """Print the ratio of medians and keep it in the benchmark's JSON."""
    ratio = statistics.median(theirs) / statistics.median(ours)
    benchmark.extra_info[what] = round(ratio, 4)
    with capsys.disabled():
        print(f"\n  {what}: {ratio:.3f} (at least 1: {'met' if ratio >= 1 else 'NOT MET'})")


def test_prefill(
    benchmark: Any, capsys: pytest.CaptureFixture[str], engine: OnnxRuntimeDecoder, loop: genai.GenaiLoop
) -> None:
    theirs: list[float] = []

    def before_each() -> None:
        theirs.append(loop.round(PROMPT, 0).prefill_ms)
        engine.reset()

    benchmark.pedantic(engine.prefill, ([PROMPT],), setup=before_each, rounds=ROUNDS)
    ours = [1e3 * seconds for seconds in benchmark.stats.stats.data]
    tell(capsys, benchmark, f"prefill of {len(PROMPT)}, speed over onnxruntime-genai", theirs, ours)


def test_decode(
    benchmark: Any,
    capsys: pytest.CaptureFixture[str],
    engine: OnnxRuntimeDecoder,
    loop: genai.GenaiLoop,
    later_engine: OnnxRuntimeDecoder,
) -> None:
    """Greedy in both: their time includes their search, ours the argmax."""
    theirs: list[float] = []
    ours: list[float] = []

    def before_each() -> None:
        theirs.extend(loop.round(PROMPT, STEPS).decode_ms)

    def steps() -> None:
        for each in (engine, later_engine):
            each.reset()
            token = int(each.prefill([PROMPT]).argmax())
            for _ in range(STEPS):
                start = time.perf_counter()
                token = int(each.decode(token).argmax())
                ours.append(1e3 * (time.perf_counter() - start))

    benchmark.pedantic(steps, setup=before_each, rounds=ROUNDS)
    tell(capsys, benchmark, "decode, speed over onnxruntime-genai", theirs, ours)
