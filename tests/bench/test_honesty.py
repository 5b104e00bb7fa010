"""The bench tells the truth: scripted stage times are measured as they are, and what cheats, leaks or fails is told."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import scripted_runtime as script
from bench_bundles import hollow_bundle, settings
from fake_engines import tokenizer_file

from edgevlm.bench.report import Report, Row
from edgevlm.bench.sweep import sweep

FAULTY = {"nan": "not finite", "count": "(1, 3, 8), not (1, 4, 8)"}
WARMUP, ANSWERS, TOKENS = 2, 12, 12


def run(folder: Path, names: list[str]) -> Report:
    bundles = [hollow_bundle(folder / name) for name in names]
    for bundle in bundles:
        tokenizer_file(bundle.path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))
        return sweep(
            bundles,
            settings(task=None, warmup=WARMUP, iterations=ANSWERS, max_tokens=TOKENS, cached=3, silence_s=300),
            folder / "out",
            progress=lambda *_: None,
            worker="scripted_runtime:serve",
        )


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Row]:
    names = ["honest", "remembers", "leak", *FAULTY]
    return {row.name: row for row in run(tmp_path_factory.mktemp("honesty"), names).rows}


def scripted(milliseconds: float) -> object:
    """Within 2% or 0.2 ms, whichever is more."""
    return pytest.approx(milliseconds, rel=0.02, abs=0.2)


def test_every_stage_of_every_answer_is_measured_as_scripted(rows: dict[str, Row]) -> None:
    latency = rows["honest"].latency
    assert latency is not None
    assert latency.load_ms == scripted(script.LOAD)
    assert len(latency.steady) == ANSWERS
    assert latency.repeat is not None
    for number, sample in enumerate([latency.cold, *latency.warmup, *latency.steady, latency.repeat]):
        vision, prefill = script.scripted_vision(number), script.scripted_prefill(number)
        assert sample.preprocess_ms == scripted(script.PREPROCESS)
        assert sample.vision_ms == scripted(vision)
        assert sample.prefill_ms == scripted(prefill)
        assert sample.first_decode_ms == scripted(script.SAMPLING)
        assert sample.gaps_ms == [scripted(script.DECODE + script.SAMPLING)] * (TOKENS - 1)
        ttft = script.PREPROCESS + vision + prefill + script.SAMPLING
        assert sample.ttft_ms == scripted(ttft)
        assert sample.wall_ms == scripted(ttft + (TOKENS - 1) * (script.DECODE + script.SAMPLING))


def test_figures_are_those_of_the_script(rows: dict[str, Row]) -> None:
    latency = rows["honest"].latency
    assert latency is not None
    vision, prefill = script.VISION + script.VISION_STEP, script.PREFILL + script.PREFILL_STEP
    ttft = script.PREPROCESS + vision + prefill + script.SAMPLING
    assert latency.stages.vision_ms.median == scripted(vision)
    assert latency.stages.prefill_ms.median == scripted(prefill)
    assert latency.ttft_steady_ms.median == scripted(ttft)
    assert latency.ttft_cold_ms == scripted(ttft - script.VISION_STEP - script.PREFILL_STEP)
    assert latency.decode_tokens_per_second == pytest.approx(1000 / (script.DECODE + script.SAMPLING), rel=0.02)
    assert latency.e2e_ms.median == scripted(ttft + (TOKENS - 1) * (script.DECODE + script.SAMPLING))
    assert latency.steady_s == pytest.approx(sum(taken.wall_ms for taken in latency.steady) / 1000, rel=0.02)


def test_session_s_own_cache_shows_in_the_cached_figure_alone(rows: dict[str, Row]) -> None:
    latency = rows["honest"].latency
    assert latency is not None
    assert [taken.vision_ms for taken in latency.cached[1:]] == [scripted(0)] * 2
    assert min(taken.vision_ms for taken in latency.steady) == scripted(script.VISION)
    assert codes(rows["honest"]) == set()


def codes(row: Row) -> set[str]:
    """The flags, but for that of the machine, on which other tests may run."""
    return {flag.code for flag in row.flags} - {"contended"}


def test_runtime_that_keeps_images_though_caches_are_off_is_flagged(rows: dict[str, Row]) -> None:
    assert rows["remembers"].status == "ok"
    assert codes(rows["remembers"]) == {"cache-suspected"}
    assert any("vision" in flag.text for flag in rows["remembers"].flags)


def test_runtime_that_leaks_is_flagged_with_what_it_lost(rows: dict[str, Row]) -> None:
    memory = rows["leak"].memory
    assert memory is not None
    assert codes(rows["leak"]) == {"memory-growth"}
    grown = memory.steady_rss_bytes[-1] - memory.steady_rss_bytes[0]
    assert grown == pytest.approx((ANSWERS - 1) * script.LEAK, rel=0.3)


@pytest.mark.parametrize("name", FAULTY)
def test_runtime_that_fails_is_a_row_with_the_reason(rows: dict[str, Row], name: str) -> None:
    assert (rows[name].status, rows[name].failed_stage) == ("failed", "latency")
    assert FAULTY[name] in rows[name].reason
    assert rows[name].latency is None


def test_busy_machine_is_told(tmp_path: Path) -> None:
    """The runtime works for a second in all, while every core has something else to do."""
    spin = [sys.executable, "-c", "while True: pass"]
    others = [subprocess.Popen(spin) for _ in range(os.cpu_count() or 1)]
    try:
        row = run(tmp_path, ["busy"]).rows[0]
    finally:
        for other in others:
            other.kill()
            other.wait()
    (told,) = [flag for flag in row.flags if flag.code == "contended"]
    assert "the machine is noisy" in told.text
