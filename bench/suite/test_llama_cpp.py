"""Our llama.cpp engine against the plain C loop on the same full-size GGUF, threads and build, in one run."""

import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgevlm.bench.suite.llama_loop import PlainLoop, Round, compile_loop
from edgevlm.exporters import gguf
from edgevlm.models import load
from edgevlm.runtimes.base import EngineOptions, Segment
from edgevlm.runtimes.checks import thread_count
from edgevlm.runtimes.llama_cpp import LlamaCppDecoder
from edgevlm.spec import DecoderSpec
from edgevlm.targets.isa import cpu_features
from edgevlm.zoo.synth import synth

CONTEXT = 4096
TEXT_BEFORE, IMAGE, TEXT_AFTER = 14, 256, 16
PROMPT = TEXT_BEFORE + IMAGE + TEXT_AFTER
IDS = f"t{PROMPT}"
#: What the engine does with an image: its text is looked up, and all of it runs as one batch.
EMBEDDINGS = f"e{PROMPT}"
#: What is done without that look-up, since llama.cpp takes no batch of both.
THREE_BATCHES = f"t{TEXT_BEFORE} e{IMAGE} t{TEXT_AFTER}"
STEPS = 32
ROUNDS = 7


@pytest.fixture(scope="module")
def decoder_file(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DecoderSpec]:
    """The decoder of the suite's full-size checkpoint at q4_0."""
    folder = tmp_path_factory.mktemp("gguf")
    model = load(checkpoint)
    (artifact,) = gguf.export(model, folder, gguf_type="q4_0", progress=lambda *_: None)
    return folder / artifact.path, model.spec.decoder


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_loop(tmp_path_factory.mktemp("loop"))


@pytest.fixture(scope="module")
def loop(program: Path, decoder_file: tuple[Path, DecoderSpec]) -> Iterator[PlainLoop]:
    plain = PlainLoop(program, decoder_file[0], thread_count(0), CONTEXT)
    plain.round(IDS, STEPS)
    yield plain
    plain.close()


@pytest.fixture(scope="module")
def engine(decoder_file: tuple[Path, DecoderSpec]) -> Iterator[LlamaCppDecoder]:
    path, spec = decoder_file
    decoder = LlamaCppDecoder(path, spec, EngineOptions(threads=thread_count(0), context_length=CONTEXT))
    decoder.prefill([np.arange(PROMPT, dtype=np.int32)])
    yield decoder
    decoder.close()


def tell(capsys: pytest.CaptureFixture[str], benchmark: Any, what: str, value: float, bound: str, met: bool) -> None:
    """Print the row and keep it in the benchmark's JSON."""
    benchmark.extra_info[what] = round(value, 4)
    with capsys.disabled():
        print(f"\n  {what}: {value:.3f} ({bound}: {'met' if met else 'NOT MET'})")


def tell_ratio(
    capsys: pytest.CaptureFixture[str],
    benchmark: Any,
    what: str,
    reference: list[float],
    ours: list[float],
    least: float,
) -> None:
    """The speed of ours over the reference, from medians of milliseconds."""
    ratio = statistics.median(reference) / statistics.median(ours)
    tell(capsys, benchmark, what, ratio, f"at least {least}", ratio >= least)


def prompts() -> dict[str, list[Segment]]:
    image = np.random.default_rng(0).standard_normal((IMAGE, 896)).astype(np.float32)
    before, after = np.arange(TEXT_BEFORE, dtype=np.int32), np.arange(TEXT_AFTER, dtype=np.int32)
    return {"text": [np.arange(PROMPT, dtype=np.int32)], "image": [before, image, after]}


@pytest.mark.parametrize(
    ("kind", "pieces", "least"),
    [("text", IDS, 0.97), ("image", EMBEDDINGS, 0.97), ("image", THREE_BATCHES, 1.0)],
    ids=["ids", "embeddings", "three batches"],
)
def test_prefill(
    benchmark: Any,
    capsys: pytest.CaptureFixture[str],
    loop: PlainLoop,
    engine: LlamaCppDecoder,
    kind: str,
    pieces: str,
    least: float,
) -> None:
    plain: list[float] = []

    def before_each() -> None:
        plain.append(loop.round(pieces, 0).prefill_ms)
        engine.reset()

    benchmark.pedantic(engine.prefill, (prompts()[kind],), setup=before_each, rounds=ROUNDS)
    ours = [1e3 * seconds for seconds in benchmark.stats.stats.data]
    tell_ratio(capsys, benchmark, f"prefill ({kind}), engine over C loop of {pieces}", plain, ours, least)


@pytest.mark.parametrize(("kind", "pieces"), [("text", IDS), ("image", EMBEDDINGS)], ids=["ids", "embeddings"])
def test_prefill_cpu_time(
    benchmark: Any,
    capsys: pytest.CaptureFixture[str],
    program: Path,
    decoder_file: tuple[Path, DecoderSpec],
    kind: str,
    pieces: str,
) -> None:
    """The same with one thread, in CPU time, which says something on a busy machine too."""
    path, spec = decoder_file
    plain = PlainLoop(program, path, 1, CONTEXT)
    engine = LlamaCppDecoder(path, spec, EngineOptions(threads=1, context_length=CONTEXT))
    reference: list[float] = []
    ours: list[float] = []

    def both() -> None:
        start = plain.cpu_ms()
        plain.round(pieces, 0)
        reference.append(plain.cpu_ms() - start)
        engine.reset()
        start = time.thread_time()
        engine.prefill(prompts()[kind])
        ours.append(1e3 * (time.thread_time() - start))

    benchmark.pedantic(both, rounds=ROUNDS, warmup_rounds=1)
    plain.close()
    engine.close()
    what = f"prefill ({kind}) in CPU time of one thread, engine over C loop of {pieces}"
    tell_ratio(capsys, benchmark, what, reference[1:], ours[1:], 0.97)


def test_decode(benchmark: Any, capsys: pytest.CaptureFixture[str], loop: PlainLoop, engine: LlamaCppDecoder) -> None:
    plain: list[float] = []
    ours: list[float] = []

    def before_each() -> None:
        plain.extend(loop.round(IDS, STEPS).decode_ms)
        engine.reset()
        engine.prefill(prompts()["text"])

    def steps() -> None:
        for _ in range(STEPS):
            start = time.perf_counter()
            engine.decode(5)
            ours.append(1e3 * (time.perf_counter() - start))

    benchmark.pedantic(steps, setup=before_each, rounds=ROUNDS)
    tell_ratio(capsys, benchmark, "decode, engine over C loop", plain, ours, 0.97)


def test_python_per_token(benchmark: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """What `decode` takes beyond llama.cpp's own call, on a model so small that caches stay warm."""
    synth("fastvlm-0.5b", tmp_path / "checkpoint", tiny=True)
    model = load(tmp_path / "checkpoint")
    (artifact,) = gguf.export(model, tmp_path, gguf_type="q4_0", progress=lambda *_: None)
    decoder = LlamaCppDecoder(tmp_path / artifact.path, model.spec.decoder, EngineOptions(1, 512))
    decoder.prefill([np.arange(8, dtype=np.int32)])
    llama_decode, inside, added = decoder._llama_decode, [0.0], []

    def timed(*arguments: Any) -> Any:
        start = time.perf_counter()
        status = llama_decode(*arguments)
        inside[0] = time.perf_counter() - start
        return status

    def steps() -> None:
        for _ in range(20):
            start = time.perf_counter()
            decoder.decode(5)
            added.append(1e3 * (time.perf_counter() - start - inside[0]))

    decoder._llama_decode = timed
    benchmark.pedantic(steps, setup=lambda: decoder.reset(8), rounds=20)
    per_token = statistics.median(added)
    tell(capsys, benchmark, "milliseconds of Python per token", per_token, "at most 0.3", per_token <= 0.3)


def test_amx(
    benchmark: Any,
    capsys: pytest.CaptureFixture[str],
    program: Path,
    decoder_file: tuple[Path, DecoderSpec],
    loop: PlainLoop,
) -> None:
    if "amx_int8" not in cpu_features():
        pytest.skip("n/a: no AMX")
    without = PlainLoop(program, decoder_file[0], thread_count(0), CONTEXT, amx=False)
    slow: list[Round] = []
    fast: list[Round] = []
    benchmark.pedantic(
        lambda: fast.append(loop.round(IDS, STEPS)),
        setup=lambda: slow.append(without.round(IDS, STEPS)),
        rounds=ROUNDS,
    )
    without.close()
    slow_prefill, fast_prefill = [each.prefill_ms for each in slow], [each.prefill_ms for each in fast]
    tell_ratio(capsys, benchmark, "prefill, AMX over the same build without", slow_prefill, fast_prefill, 2.0)
    slow_decode, fast_decode = (
        [ms for each in slow for ms in each.decode_ms],
        [ms for each in fast for ms in each.decode_ms],
    )
    tell_ratio(capsys, benchmark, "decode, AMX over the same build without", slow_decode, fast_decode, 1.4)
