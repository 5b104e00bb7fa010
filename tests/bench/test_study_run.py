"""A study measures each cell once, whatever becomes of it, and goes on where it was stopped."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import study_fakes

from edgevlm.bench import sweep
from edgevlm.bench.accuracy.scoring import compare
from edgevlm.bench.job import Job
from edgevlm.bench.measured import Measured, run_worker
from edgevlm.bench.predictions import read_jsonl
from edgevlm.bench.render.study_findings import study_findings
from edgevlm.bench.report import Report, Row
from edgevlm.bench.study import run, shelf, timing
from edgevlm.bench.study.run import export_command, layer_tokens
from edgevlm.bench.study.state import STATE
from edgevlm.errors import EdgeVLMError, EngineError, InputError
from edgevlm.recipe import CalibrationData, Recipe
from edgevlm.spec import DropStage, TokenDropSpec

Studied = tuple[Report, Path]
TESTS = Path(__file__).parent.parent


def rows(report: Report) -> dict[str, Row]:
    return {row.name: row for row in report.rows}


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return study_fakes.prepare(monkeypatch)


def test_every_cell_has_a_row(studied: Studied) -> None:
    """18 of 36 tokens make no square, so that pool gets 16; the encoder has no class token for fastervlm."""
    statuses = {row.name: (row.status, row.failed_stage) for row in studied[0].rows}
    assert next(iter(statuses)) == "unpruned"
    assert statuses == {
        "unpruned": ("ok", ""),
        **{f"{name} {count}": ("ok", "") for name in ("uniform", "random", "divprune") for count in (18, 9)},
        **{f"pool {count}": ("ok", "") for count in (16, 9)},
        **{f"{name} {count}": ("skipped", "") for name in ("fastervlm", "fastv") for count in (18, 9)},
        **{f"attention {count}": ("failed", "accuracy") for count in (18, 9)},
        **{f"resolution {count}": ("failed", "export") for count in (16, 9)},
    }


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("fastervlm 9", "no class token, which fastervlm reads; use attention"),
        ("fastv 9", "cannot export hollow to gguf"),
        ("attention 9", "SIGSEGV"),
        ("resolution 9", "the exported model does not answer like the original"),
    ],
)
def test_a_cell_without_figures_says_why(studied: Studied, name: str, reason: str) -> None:
    row = rows(studied[0])[name]
    assert reason in row.reason
    assert row.accuracy is None
    assert row.pruning is not None
    assert row.pruning.keep_percent == [25]


def test_cells_are_paired_with_the_unpruned_model(studied: Studied) -> None:
    row = rows(studied[0])["random 9"]
    assert row.accuracy is not None
    assert row.accuracy.overall.correct == 12
    paired = row.accuracy.paired
    assert paired is not None
    assert (paired.baseline, paired.lost, paired.gained, paired.n) == ("unpruned", 12, 0, 24)
    assert paired.mcnemar_p == pytest.approx(2 * 0.5**12)
    full = rows(studied[0])["unpruned"].accuracy
    assert full is not None
    assert (full.overall.correct, full.paired) == (24, None)


def test_cells_are_compared_with_plain_choices_of_the_same_share(studied: Studied) -> None:
    """Of pool's 16 tokens the same half was asked for as of their 18."""
    report, out = studied
    found = rows(report)["pool 16"]
    assert found.pruning is not None
    assert [paired.baseline for paired in found.pruning.against] == ["uniform 18", "random 18"]
    files = [row.accuracy.predictions_file for row in (found, rows(report)["random 18"]) if row.accuracy]
    own, other = (read_jsonl(out / file, 24) for file in files)
    assert own is not None
    assert other is not None
    assert found.pruning.against[1] == compare(own, other, "random 18", 0.02, report.settings.seed)
    plain = rows(report)["random 18"].pruning
    assert plain is not None
    assert [paired.baseline for paired in plain.against] == ["uniform 18"]


def test_the_report_says_what_was_varied_and_where_the_fronts_are(studied: Studied) -> None:
    study = studied[0].study
    assert study is not None
    assert (study.unpruned, study.image_tokens, study.keep_percent) == ("unpruned", 36, [50, 25])
    assert study.methods == list(study_fakes.METHODS)
    assert study.front_tokens == ["divprune 9", "unpruned"]
    assert study.front_ttft[-1] == "unpruned"


def test_every_cell_has_the_engine_and_the_method_cost(studied: Studied) -> None:
    for row in studied[0].rows:
        if row.status == "ok" and row.pruning is not None:
            assert row.pruning.method_ms is not None
            assert row.latency is not None
            assert row.latency.ttft_steady_ms.n == 6


def test_bundles_are_gone_unless_they_are_wanted(studied: Studied, tmp_path: Path, made: list[str]) -> None:
    assert not (studied[1] / "bundles").exists()
    study_fakes.study(study_fakes.request(tmp_path, ("pool",), (50,), save_bundles=True))
    assert {path.name for path in (tmp_path / "bundles").iterdir()} == {"unpruned", "pool_16"}
    assert made == ["unpruned", "pool:16"]


def test_what_was_done_is_not_done_again(studied: Studied, tmp_path: Path, made: list[str]) -> None:
    """Nor is what failed; a method that is new is added."""
    out = tmp_path / "again"
    shutil.copytree(studied[1], out)
    again = study_fakes.study(study_fakes.request(out))
    assert made == []
    assert again.rows == studied[0].rows
    assert again.environment.started == studied[0].environment.started
    more = study_fakes.study(study_fakes.request(out, ("uniform", "random", "random:seed=1"), (25,)))
    assert made == ["unpruned", "random:9"]
    assert [row.name for row in more.rows] == ["unpruned", "uniform 9", "random 9", "random:seed=1 9"]
    made.clear()
    study_fakes.study(study_fakes.request(out, ("resolution", "uniform"), (25,), retry=True))
    assert made == ["unpruned", "resolution:9"]


def test_another_study_in_the_folder_is_refused_before_any_work(
    studied: Studied, tmp_path: Path, made: list[str]
) -> None:
    (tmp_path / STATE).write_bytes((studied[1] / STATE).read_bytes())
    with pytest.raises(InputError, match="items is 25 now and was 24"):
        study_fakes.study(study_fakes.request(tmp_path, items=25))
    assert made == []
    study_fakes.study(study_fakes.request(tmp_path, ("uniform",), (25,), items=25, restart=True))
    assert made == ["unpruned", "uniform:9"]


def test_unknown_methods_and_tasks_are_refused_before_any_work(tmp_path: Path, made: list[str]) -> None:
    for changes in ({"methods": ("unifrom",)}, {"task": "trivia"}, {"split": "exam"}):
        with pytest.raises(InputError):
            study_fakes.study(study_fakes.request(tmp_path / "out", **changes))
    assert made == []
    assert not (tmp_path / "out").exists()


def test_an_unpruned_model_that_fails_ends_the_study(
    tmp_path: Path, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shelf, "UNPRUNED", "attention")
    monkeypatch.setattr(run, "UNPRUNED", "attention")
    with pytest.raises(EdgeVLMError, match=r"the unpruned model cannot be measured: .*SIGSEGV"):
        study_fakes.study(study_fakes.request(tmp_path))
    assert made == ["unpruned"]


def test_an_interruption_reports_the_rows_so_far_and_the_rest_follows(
    tmp_path: Path, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def third_is_interrupted(job: Any, *rest: Any) -> Any:
        calls.append(job.path)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return run_worker(job, *rest)

    monkeypatch.setattr(sweep, "run_worker", third_is_interrupted)
    first = study_fakes.study(study_fakes.request(tmp_path, ("uniform", "pool"), (50,)))
    assert first.interrupted
    assert [(row.name, row.status) for row in first.rows] == [
        ("unpruned", "ok"),
        ("uniform 18", "ok"),
        ("pool 16", "skipped"),
    ]
    assert first.rows[2].reason == "not measured"
    second = study_fakes.study(study_fakes.request(tmp_path, ("uniform", "pool"), (50,)))
    assert not second.interrupted
    assert [row.status for row in second.rows] == ["ok", "ok", "ok"]
    assert [row.accuracy for row in second.rows[:2]] == [row.accuracy for row in first.rows[:2]]
    assert made == ["unpruned", "uniform:18", "pool:16", "pool:16"]


def test_all_cells_are_asked_before_any_is_timed_and_each_by_turns_with_the_unpruned_one(
    tmp_path: Path, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, str, str]] = []

    def watched(job: Job, *rest: Any) -> Any:
        seen.append((Path(job.path).name, Path(job.beside).name, "timed" if job.latency else "asked"))
        assert (job.latency is None) != (job.accuracy is None)
        return run_worker(job, *rest)

    for module in (sweep, timing):
        monkeypatch.setattr(module, "run_worker", watched)
    report = study_fakes.study(study_fakes.request(tmp_path, ("uniform", "pool"), (50,)))
    names = ("unpruned", "uniform_18", "pool_16")
    assert seen == [
        *((name, "", "asked") for name in names),
        *((name, "" if name == "unpruned" else "unpruned", "timed") for name in names),
    ]
    assert made == ["unpruned", "uniform:18", "pool:16"]
    for row in report.rows[1:]:
        assert row.latency is not None
        assert row.pruning is not None
        assert row.pruning.beside is not None
        assert row.pruning.beside.ttft_ms.n == row.latency.ttft_steady_ms.n == 6
        assert row.memory is not None


def test_cells_that_were_asked_are_timed_by_another_run_from_the_same_bundles(tmp_path: Path, made: list[str]) -> None:
    first = study_fakes.study(study_fakes.request(tmp_path, ("uniform", "pool"), (50,), timing=False))
    assert [row.status for row in first.rows] == ["ok", "ok", "ok"]
    assert all(row.latency is None for row in first.rows)
    assert [row.accuracy.overall.correct for row in first.rows if row.accuracy] == [24, 16, 18]
    assert any("not timed yet" in str(finding) for finding in study_findings(first))
    shutil.rmtree(tmp_path / "bundles" / "pool_16")
    second = study_fakes.study(study_fakes.request(tmp_path, ("uniform", "pool"), (50,)))
    assert made == ["unpruned", "uniform:18", "pool:16", "pool:16"]
    assert all(row.latency is not None for row in second.rows)
    assert [row.accuracy for row in second.rows] == [row.accuracy for row in first.rows]
    assert not (tmp_path / "bundles").exists()
    assert not any("not timed yet" in str(finding) for finding in study_findings(second))


def test_a_cell_that_cannot_be_timed_keeps_its_accuracy_and_is_tried_again_on_demand(
    tmp_path: Path, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(timing, "run_worker", lambda *_: Measured(failure="SIGSEGV"))
        study_fakes.study(study_fakes.request(tmp_path, ("uniform",), (50,)))
    row = rows(study_fakes.study(study_fakes.request(tmp_path, ("uniform",), (50,))))["uniform 18"]
    assert (row.status, row.latency) == ("ok", None)
    assert row.accuracy is not None
    assert [flag.text for flag in row.flags] == ["could not be timed: SIGSEGV"]
    row = rows(study_fakes.study(study_fakes.request(tmp_path, ("uniform",), (50,), retry=True)))["uniform 18"]
    assert row.latency is not None
    assert "not-timed" not in {flag.code for flag in row.flags}
    assert made == ["unpruned", "uniform:18", "unpruned", "uniform:18"]


def test_layers_behind_a_stage_have_fewer_tokens() -> None:
    stages = (DropStage(2, 20), DropStage(5, 9))
    drop = TokenDropSpec("pyramiddrop", "attention", 36, stages)
    spec = replace(study_fakes.SPEC, decoder=replace(study_fakes.SPEC.decoder, token_drop=drop))
    assert layer_tokens(spec) == [36, 36, 20, 20, 20, 9, 9, 9]
    assert layer_tokens(study_fakes.SPEC) is None


def test_a_cost_that_cannot_be_measured_leaves_the_other_figures(
    tmp_path: Path, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise EngineError("the graph needs a prompt", "vision")

    monkeypatch.setattr(timing, "method_cost", fails)
    row = rows(study_fakes.study(study_fakes.request(tmp_path, ("uniform",), (50,))))["uniform 18"]
    assert (row.status, made) == ("ok", ["unpruned", "uniform:18"])
    assert row.accuracy is not None
    assert row.pruning is not None
    assert row.pruning.method_ms is None
    assert "needs a prompt" in next(flag.text for flag in row.flags if flag.code == "no-method-cost")


_SCRIPT = """
import sys
from pathlib import Path
import pytest, study_fakes
from edgevlm.bench.study import shelf

with pytest.MonkeyPatch.context() as patch:
    study_fakes.prepare(patch)
    make = shelf.compile_recipe
    def stop_at_pool(recipe, out, **rest):
        bundle = make(recipe, out, **rest)
        if out.name == "pool_16":
            print("pool", flush=True)
            sys.stdin.read()
        return bundle
    patch.setattr(shelf, "compile_recipe", stop_at_pool)
    study_fakes.study(study_fakes.request(Path(sys.argv[1]), ("uniform", "pool"), (50,)))
"""


def test_a_killed_study_goes_on_behind_the_cells_that_were_done(tmp_path: Path, made: list[str]) -> None:
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    process = subprocess.Popen(
        [sys.executable, "-c", _SCRIPT, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "pool\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert process.stdin is not None
    process.stdin.close()
    lines = (tmp_path / STATE).read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["row"]["name"] for line in lines[1:]] == ["unpruned", "uniform 18"]
    report = study_fakes.study(study_fakes.request(tmp_path, ("uniform", "pool"), (50,)))
    assert made == ["pool:16"]
    assert [row.status for row in report.rows] == ["ok", "ok", "ok"]
    assert all(row.latency is not None for row in report.rows)
    assert not (tmp_path / "bundles").exists()


def test_the_export_command_states_what_differs_from_the_defaults() -> None:
    recipe = Recipe(
        model="zoo:nano-llava", precision="fp16", resolution=128, calibration=CalibrationData(source="scenes")
    )
    command = export_command(recipe, "random:9,seed=1", "out")
    assert " ".join(command) == (
        "edgevlm export zoo:nano-llava --format onnx --precision fp16 --resolution 128 "
        "--prune-tokens random:9,seed=1 --calibrate scenes -o out"
    )


def test_a_method_that_chooses_its_count_is_a_cell_with_that_count(tmp_path: Path, made: list[str]) -> None:
    """The bundle says how many: 16 here."""
    asked = study_fakes.request(tmp_path, ("sms:by=attention", "uniform"), (50, 25))
    recipe = asked.recipe.model_copy(update={"calibration": CalibrationData(source="scenes")})
    report = study_fakes.study(replace(asked, recipe=recipe))
    assert made == ["unpruned", "sms", "uniform:18", "uniform:9"]
    found = rows(report)["sms:by=attention"]
    assert (found.status, found.reason) == ("ok", "")
    assert found.pruning is not None
    assert (found.pruning.tokens, found.pruning.keep_percent) == (16, [])
    assert found.pruning.export[-4:] == ["--calibrate", "scenes", "-o", "sms_by_attention"]
    assert report.study is not None
    assert report.study.front_tokens == ["uniform 9", "sms:by=attention"], "all of its answers are right"
    again = study_fakes.study(study_fakes.request(tmp_path / "without", ("sms:by=attention",), (50,)))
    assert "give --calibrate" in rows(again)["sms:by=attention"].reason
