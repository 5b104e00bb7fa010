"""`edgevlm compare` finds what got worse, and neither takes noise for it nor hides it."""

import json
from pathlib import Path
from typing import Any

import pytest
from html_page import HOSTILE, Page
from jsonschema import Draft202012Validator
from made_reports import MACHINE, accuracy, report, row, save, scored

from edgevlm.bench.compare import compare, judge
from edgevlm.bench.comparison import Change, Comparison, comparison_schema
from edgevlm.bench.matching import identity, match
from edgevlm.bench.metered import Energy, Joules, Meter
from edgevlm.bench.pairs import Interval
from edgevlm.bench.reading import read_report
from edgevlm.bench.render.comparison import render_html, render_markdown
from edgevlm.bench.render.comparison_chart import forest
from edgevlm.bench.report import Engine, Flag, Report, Row, Throughput
from edgevlm.bench.stats import summarise
from edgevlm.cli import main

ROOT = Path(__file__).parent.parent.parent
METER = Meter(
    source="ina3221",
    rails=["VDD_IN"],
    covers="the module",
    method="trapezoid",
    rate_hz=10,
    answers=6,
    seconds=3,
    mean_w=6,
    idle_w=None,
    per_answer=Joules(gross=3.0, net=None),
    per_image=None,
    per_token=None,
)


def compared(folder: Path, old: Report, new: Report, tolerance: float = 0.05) -> Comparison:
    both = (read_report(save(folder / "old", old)), read_report(save(folder / "new", new)))
    return compare(*both, tolerance=tolerance, margin=0.02)


def change(found: Comparison, figure: str) -> Change:
    return next(each for each in found.rows[0].changes if each.figure == figure)


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as leaving:
        main(["compare", *map(str, arguments)])
    assert isinstance(leaving.value.code, int)
    return leaving.value.code


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.06, 0.09, "regression"),
        (0.04, 0.09, "undecided"),
        (-0.08, 0.06, "undecided"),
        (-0.01, 0.04, "unchanged"),
        (-0.08, -0.04, "unchanged"),
        (-0.09, -0.06, "improvement"),
    ],
)
def test_judgement_looks_at_the_whole_interval(low: float, high: float, expected: str) -> None:
    assert judge(Interval(value=(low + high) / 2, low=low, high=high), 0.05) == expected
    assert judge(None, 0.05) == "undecided"


def test_the_same_model_measured_again_is_no_regression(tmp_path: Path) -> None:
    found = compared(tmp_path, report(row("a", seed=1)), report(row("a", seed=2)))
    assert found.regressions == []
    assert {each.judgement for each in found.rows[0].changes if each.judged} == {"unchanged"}


def test_a_slower_stage_is_found_in_what_it_slows_down(tmp_path: Path) -> None:
    found = compared(tmp_path, report(row("a", seed=1)), report(row("a", seed=2, slower=1.2)))
    assert found.regressions == ["a: TTFT steady", "a: decode"]
    assert change(found, "TTFT steady").change == pytest.approx(0.2 * 90 / 96, abs=0.03)
    rate = change(found, "decode")
    assert rate.new == pytest.approx(rate.old / 1.2, rel=0.03)
    assert rate.interval is not None
    assert rate.interval.low < rate.change < rate.interval.high < 0
    assert change(found, "vision").judgement == "regression"
    assert not change(found, "vision").judged
    assert change(found, "preprocess").judgement == "unchanged"


def test_few_answers_decide_nothing(tmp_path: Path) -> None:
    found = compared(tmp_path, report(row("a", n=5)), report(row("a", n=5, slower=2)))
    assert change(found, "TTFT steady").judgement == "undecided"
    assert change(found, "TTFT steady").interval is None
    assert found.regressions == []


def test_size_and_memory_are_taken_as_exact(tmp_path: Path) -> None:
    bigger = row("a", total_bytes=2_200_000)
    found = compared(tmp_path, report(row("a")), report(bigger), tolerance=0.09)
    assert found.regressions == ["a: size"]
    assert compared(tmp_path, report(row("a")), report(bigger), tolerance=0.11).regressions == []


def test_memory_on_gpus_is_compared_where_both_reports_have_it(tmp_path: Path) -> None:
    def on_gpu(used: int) -> Report:
        made = row("a")
        assert made.memory is not None
        seen = made.memory.model_copy(update={"peak_gpu_bytes": used, "peak_unified_bytes": used})
        return report(made.model_copy(update={"memory": seen}))

    found = compared(tmp_path, on_gpu(1_000_000_000), on_gpu(1_200_000_000))
    assert found.regressions == ["a: peak GPU memory"]
    assert change(found, "peak unified memory").change == pytest.approx(0.2)
    without = compared(tmp_path, report(row("a")), on_gpu(1_200_000_000))
    assert [each.figure for each in without.rows[0].changes if "GPU" in each.figure] == []


def test_flags_of_both_rows_are_told_once(tmp_path: Path) -> None:
    def flagged(*texts: str) -> Report:
        flags = [Flag(code="noisy", text=text) for text in texts]
        return report(row("a").model_copy(update={"flags": flags}))

    found = compared(tmp_path, flagged("varies by 20%", "was hot"), flagged("varies by 30%", "was hot"))
    assert found.rows[0].remarks == ["both: was hot", "old: varies by 20%", "new: varies by 30%"]


def test_batch_jobs_are_compared_by_what_they_get_done(tmp_path: Path) -> None:
    def batches(*rates: float) -> Row:
        summary = summarise(rates)
        assert summary is not None
        done = Throughput(
            answers=64,
            tokens=640,
            seconds=8,
            images_per_second=8,
            tokens_per_second=80,
            batch=8,
            batches=summary,
        )
        return row("a", throughput=done, energy=Energy(meters=[METER], reason=""))

    old, new = batches(8.0, 8.1, 8.2, 8.0, 8.1, 8.1), batches(7.0, 7.1, 7.2, 7.0, 7.1, 7.1)
    found = compared(tmp_path, report(old, scenario="offline"), report(new, scenario="offline"))
    assert found.regressions == ["a: throughput"]
    throughput = change(found, "throughput")
    assert throughput.change == pytest.approx(7.1 / 8.1 - 1)
    assert throughput.interval is not None
    assert throughput.interval.low == pytest.approx(-0.138, abs=0.005)
    energy = change(found, "energy per answer")
    assert (energy.old, energy.change, energy.judged) == (3.0, 0.0, False)
    assert "offline" in found.rows[0].what
    assert match(report(old, scenario="offline"), report(new)).pairs == []
    assert "throughput" in render_markdown(found)
    assert "throughput" not in render_markdown(compared(tmp_path, report(row("a")), report(row("a"))))


def test_rows_are_matched_by_what_they_are() -> None:
    openvino = Engine(name="openvino 2026.4", details={})
    old = report(row("x", n=6), row("y", n=6, vision_engine=openvino), row("z", n=6, resolution=512))
    new = report(
        row("z", n=6, vision_engine=Engine(name="openvino 2027.1", details={})),
        row("renamed", n=6),
        row("pruned", n=6, passes=["prune_tokens keep=16"]),
    )
    found = match(old, new)
    assert [(was.name, now.name) for was, now in found.pairs] == [("y", "z"), ("x", "renamed")]
    assert [each.name for each in found.only_old] == ["z"]
    assert [each.name for each in found.only_new] == ["pruned"]
    assert str(identity(new, new.rows[0])) == "onnx, int4, openvino + onnxruntime CPU, 256 px"
    other_threads = new.model_copy(update={"settings": new.settings.model_copy(update={"threads": 2})})
    assert match(old, other_threads).pairs == []


def test_names_decide_between_rows_that_are_alike() -> None:
    """Two recipes of one precision are not the same because they look alike."""
    old, new = report(row("gptq", n=6), row("awq", n=6)), report(row("awq", n=6), row("hqq", n=6))
    found = match(old, new)
    assert [(was.name, now.name) for was, now in found.pairs] == [("awq", "awq"), ("gptq", "hqq")]
    three = report(row("awq", n=6), row("hqq", n=6), row("rtn", n=6))
    assert [now.name for _, now in match(old, three).pairs] == ["awq"]


def test_a_row_that_worked_and_now_fails_is_a_regression(tmp_path: Path) -> None:
    failed: dict[str, Any] = {"status": "failed", "reason": "SIGSEGV", "vision_engine": None, "decoder_engine": None}
    found = compared(tmp_path, report(row("a")), report(row("a", n=0, memory=None, **failed)))
    assert found.regressions == ["a no longer works"]
    assert found.rows[0].reason == "SIGSEGV"
    back = compared(tmp_path, report(row("a", n=0, **failed)), report(row("a")))
    assert back.rows[0].status_judgement == "improvement"


def scored_row(folder: Path, right: list[bool]) -> Row:
    folder.mkdir(parents=True)
    return row("a", n=6, accuracy=scored(folder, right))


def test_accuracy_is_paired_where_the_answers_are(tmp_path: Path) -> None:
    """30 of 400 items lost: certain when paired, within the noise of two samples when not."""
    before = [index % 5 != 0 for index in range(400)]
    after = [correct and index % 13 != 1 for index, correct in enumerate(before)]
    old, new = scored_row(tmp_path / "old", before), scored_row(tmp_path / "new", after)
    found = compared(tmp_path, report(old), report(new)).rows[0].accuracy
    assert found is not None
    assert found.paired is not None
    assert (found.paired.lost, found.paired.gained) == (sum(before) - sum(after), 0)
    assert found.delta.value == pytest.approx((sum(after) - sum(before)) / 400)
    assert found.judgement == "regression"
    (tmp_path / "new" / "answers.jsonl").unlink()
    apart = compared(tmp_path, report(old), report(new)).rows[0].accuracy
    assert apart is not None
    assert apart.paired is None
    assert "answers.jsonl" in apart.unpaired_reason
    assert apart.delta.value == pytest.approx(found.delta.value)
    assert apart.judgement == "undecided"


def test_accuracy_on_other_tasks_is_not_compared(tmp_path: Path) -> None:
    old, new = row("a", accuracy=accuracy(30, 40)), row("a", accuracy=accuracy(10, 40, task="digits"))
    assert compared(tmp_path, report(old), report(new)).rows[0].accuracy is None


def test_what_differs_around_the_rows_is_said(tmp_path: Path) -> None:
    other = MACHINE.model_copy(update={"cpu_model": "Another CPU", "packages": {"onnxruntime": "1.32.0"}})
    found = compared(tmp_path, report(row("a")), report(row("a"), environment=other, max_tokens=99))
    assert not found.same_machine
    assert {each.name: (each.old, each.new) for each in found.differences} == {
        "cpu model": ("A CPU", "Another CPU"),
        "onnxruntime": ("1.31.1", "1.32.0"),
        "max tokens": ("12", "99"),
    }
    for text in (Page(render_html(found)).text, render_markdown(found)):
        assert "A CPU and Another CPU; what changed may be the machine" in text


def test_command_leaves_with_1_on_a_regression_and_writes_what_it_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = save(tmp_path / "old", report(row("a"))), save(tmp_path / "new", report(row("a", seed=1, slower=1.2)))
    out = tmp_path / "out"
    assert run(old, new, "-o", out) == 1
    shown = capsys.readouterr()
    assert shown.err.startswith("error: 2 regressions: a: TTFT steady, a: decode\n")
    assert "+18" in shown.out or "+19" in shown.out
    assert {path.name for path in out.iterdir()} == {"comparison.json", "comparison.md", "comparison.html"}
    data = json.loads((out / "comparison.json").read_text(encoding="utf-8"))
    assert not list(Draft202012Validator(comparison_schema()).iter_errors(data))
    assert Comparison.model_validate(data).regressions == ["a: TTFT steady", "a: decode"]
    assert run(old, new, "--tolerance", "30%") == 0
    assert run(old, old.parent, "--json") == 0


def test_command_refuses_what_cannot_be_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = save(tmp_path / "old", report(row("a", n=6)))
    assert run(old, save(tmp_path / "new", report(row("a", n=6, resolution=512)))) == 2
    assert "no row in common" in capsys.readouterr().err
    assert run(old, tmp_path / "nothing") == 2
    assert run(old, old, "--tolerance", "much") == 2


def test_committed_schema_is_that_of_the_code() -> None:
    committed = json.loads((ROOT / "bench" / "comparison.schema.json").read_text(encoding="utf-8"))
    assert committed == comparison_schema(), "run: python -m edgevlm.bench.comparison > bench/comparison.schema.json"


def test_renderings_show_every_row_and_defuse_foreign_text(tmp_path: Path) -> None:
    bad: dict[str, Any] = {"licence": HOSTILE, "model": HOSTILE}
    found = compared(tmp_path, report(row(HOSTILE, **bad)), report(row(HOSTILE, slower=1.2, **bad)))
    page = Page(render_html(found))
    assert not page.misnested
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    assert "<script src=//evil.example>" in page.text
    markdown = render_markdown(found)
    assert "<script" not in markdown.replace("\\<script", "")
    assert all(name in markdown for name in ("TTFT steady", "decode", "vision", "prefill", "size"))


def test_chart_puts_the_worst_first_and_marks_the_tolerance(tmp_path: Path) -> None:
    found = compared(
        tmp_path,
        report(row("a"), row("b", format="gguf")),
        report(row("a", seed=1), row("b", format="gguf", slower=1.3)),
    )
    drawing = forest(found, 1080.0)
    assert drawing.index("b · TTFT steady") < drawing.index("a · TTFT steady")
    assert drawing.count("failed") == 2
    assert 'class="band"' in drawing
