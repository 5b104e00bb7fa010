"""A matrix has a row for every cell, whatever becomes of it, and one that was stopped goes on where it was."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bench_bundles import hollow_bundle, settings

from edgevlm.bench import measured
from edgevlm.bench.gate import broken
from edgevlm.bench.kept import KEPT
from edgevlm.bench.matrix import cells
from edgevlm.bench.plan import plan
from edgevlm.bench.render.reproduce import setting
from edgevlm.bench.report import Report
from edgevlm.bench.sweep import sweep
from edgevlm.bundle import Bundle
from edgevlm.cli.ending import finish
from edgevlm.errors import EdgeVLMError, InputError
from edgevlm.spec import PatchesSpec


@pytest.fixture(autouse=True)
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))


def run(bundles: list[Bundle], out: Path, **changes: object) -> Report:
    asked = settings(**{"items": 6, "iterations": 2, "cached": 0, "warmup": 0, **changes})
    first = str(bundles[0].path)
    return sweep(bundles, asked, out, baseline=first, progress=lambda *_: None, worker="bench_fakes:serve")


def test_every_cell_has_a_row_and_a_failed_one_stops_nothing(tmp_path: Path) -> None:
    bundles = [hollow_bundle(tmp_path / name) for name in ("good", "crash")]
    own = bundles[0].spec.vision.image_size
    report = run(bundles, tmp_path / "out", thread_counts=[1, 2], resolutions=[own, 32], iterations=4)
    assert [(row.name, row.status) for row in report.rows] == [
        (f"good (1 thread, {own} px)", "ok"),
        (f"good (2 threads, {own} px)", "ok"),
        ("good (1 thread, 32 px)", "skipped"),
        ("good (2 threads, 32 px)", "skipped"),
        (f"crash (1 thread, {own} px)", "failed"),
        (f"crash (2 threads, {own} px)", "failed"),
        ("crash (1 thread, 32 px)", "skipped"),
        ("crash (2 threads, 32 px)", "skipped"),
    ]
    assert [(row.threads, row.resolution) for row in report.rows[:4]] == [(1, own), (2, own), (1, 32), (2, 32)]
    assert f"takes {own} px a side" in report.rows[2].reason
    assert [row.accuracy is not None for row in report.rows[:2]] == [True, False]


def test_models_whose_images_keep_their_shape_are_shown_images_of_that_size(tmp_path: Path) -> None:
    bundle = hollow_bundle(tmp_path / "a")
    patches = PatchesSpec(14, 2, 2, 56 * 56, 1024 * 1024)
    spec = replace(bundle.spec, preprocess=replace(bundle.spec.preprocess, patches=patches))
    found = cells(Bundle(bundle.path, bundle.manifest, spec), settings(resolutions=[448, 500, 28]))
    assert (found[0].settings.image_width, found[0].settings.image_height) == (448, 448)
    assert [bool(cell.skip) for cell in found] == [False, True, True]
    assert "multiples of 28 px" in found[1].skip


def test_what_others_are_compared_with_is_a_cell_that_can_be_measured(tmp_path: Path) -> None:
    bundles = [hollow_bundle(tmp_path / name) for name in ("a", "b")]
    asked = settings(resolutions=[32, bundles[0].spec.vision.image_size])
    works = plan(bundles, asked, str(bundles[0].path))
    assert works[3].baseline == works[1].name == f"a ({bundles[0].spec.vision.image_size} px)"
    assert [work.job.accuracy is not None for work in works] == [False, True, False, True]


def stop_at(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Let the sweep be interrupted at the worker with that number, counted from 0."""
    original, count = measured.run_worker, iter(range(99))

    def interrupted(*arguments: Any) -> measured.Measured:
        if next(count) == number:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr("edgevlm.bench.sweep.run_worker", interrupted)


def test_stopped_matrix_goes_on_with_the_cell_that_was_not_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundles = [hollow_bundle(tmp_path / name) for name in ("good", "crash", "wrong-2")]
    with monkeypatch.context() as patch:
        stop_at(patch, 2)
        stopped = run(bundles, tmp_path / "out")
    assert [row.status for row in stopped.rows] == ["ok", "failed", "skipped"]
    with (tmp_path / "out" / KEPT).open("ab") as file:
        file.write(b'{"key": "half a li')
    with monkeypatch.context() as patch:
        stop_at(patch, 99)
        resumed = run(bundles, tmp_path / "out")
    assert resumed.rows[0] == stopped.rows[0]
    assert [row.status for row in resumed.rows] == ["ok", "failed", "ok"]
    scored = resumed.rows[2].accuracy
    assert scored is not None
    assert scored.paired is not None
    assert (scored.paired.baseline, scored.paired.lost) == ("good", 3)
    assert (tmp_path / "out" / KEPT).exists(), "until the report is written"
    with pytest.raises(EdgeVLMError, match="1 of 3 could not be measured"):
        finish(resumed, tmp_path / "out", lambda *_: None, as_json=False, hint="")
    assert not (tmp_path / "out" / KEPT).exists()


def test_other_settings_are_refused_and_other_weights_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundles = [hollow_bundle(tmp_path / name) for name in ("good", "also-good")]
    with monkeypatch.context() as patch:
        stop_at(patch, 1)
        stopped = run(bundles, tmp_path / "out", task=None)
    assert [row.status for row in stopped.rows] == ["ok", "skipped"]
    with pytest.raises(InputError, match="max_tokens was 12, not 13"):
        run(bundles, tmp_path / "out", task=None, max_tokens=13)
    entries = [entry.model_copy(update={"sha256": "0" * 64}) for entry in bundles[0].manifest.artifacts]
    changed = Bundle(bundles[0].path, bundles[0].manifest.model_copy(update={"artifacts": entries}), bundles[0].spec)
    again = run([changed, bundles[1]], tmp_path / "out", task=None)
    assert [row.status for row in again.rows] == ["ok", "ok"]
    assert again.rows[0].latency != stopped.rows[0].latency


def test_batch_job_counts_images_by_the_second_and_keeps_the_pauses_out(tmp_path: Path) -> None:
    report = run([hollow_bundle(tmp_path / "a")], tmp_path / "out", task=None, scenario="offline", iterations=3)
    row = report.rows[0]
    assert row.throughput is not None
    assert row.latency is not None
    assert (row.throughput.answers, row.throughput.batch, row.throughput.batches.n) == (3, 3, 1)
    assert row.throughput.tokens == 3 * 12
    assert row.throughput.images_per_second == pytest.approx(3 / row.throughput.seconds)
    assert row.latency.cached == []


def test_gate_asks_one_cell_of_a_bundle(tmp_path: Path) -> None:
    bundles = [hollow_bundle(tmp_path / name) for name in ("a", "wrong-2")]
    own = bundles[0].spec.vision.image_size
    report = run(bundles, tmp_path / "out", resolutions=[own, 32])
    (problem,) = broken(report)
    assert problem.startswith(f"wrong-2 ({own} px): worse")
    assert dict(setting(report))["Resolutions"] == f"{own} px, 32 px"
