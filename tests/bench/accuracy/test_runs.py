"""A benchmark runs through the worker, paired; answers survive a kill item by item; two runs compare by themselves."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from bench_bundles import hollow_bundle, settings
from benchmark_files import MAKERS, picture
from resuming_worker import ASKED, KILLED_AT
from scipy import special as scipy_special
from scipy import stats as scipy_stats

from edgevlm.bench.accuracy.rescoring import compare_runs, rescored
from edgevlm.bench.accuracy.result import UNSCORED
from edgevlm.bench.accuracy.scoring import divergence, first_token, score
from edgevlm.bench.gate import broken, drop_of
from edgevlm.bench.job import Answered, Missed, Prediction
from edgevlm.bench.journal import Journal, read_journal
from edgevlm.bench.opened import FIRST_TOKENS, likeliest
from edgevlm.bench.render.report_html import render_html
from edgevlm.bench.render.report_markdown import render_markdown
from edgevlm.bench.report import Accuracy, Report, SkippedItem
from edgevlm.bench.sweep import sweep
from edgevlm.cli import main
from edgevlm.errors import InputError

TESTS = Path(__file__).parent.parent.parent


def run(folder: Path, bundles: list[str], worker: str, **asked: object) -> Report:
    """A sweep into `folder/out`; the first bundle is the baseline."""
    made = []
    for name in bundles:
        shutil.rmtree(folder / name, ignore_errors=True)
        made.append(hollow_bundle(folder / name))
    return sweep(
        made,
        settings(items=0, split="", iterations=1, warmup=0, cached=0, silence_s=300, **asked),
        folder / "out",
        baseline=str(folder / bundles[0]),
        progress=lambda *_: None,
        worker=worker,
    )


def code(*arguments: object) -> int:
    with pytest.raises(SystemExit) as leaving:
        main([*map(str, arguments)])
    assert isinstance(leaving.value.code, int)
    return leaving.value.code


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, Path]:
    """POPE, of which one picture is missing, by a model that is right and one that is wrong at every third."""
    folder = tmp_path_factory.mktemp("pope")
    MAKERS["pope"][0](folder / "data")
    with (folder / "data" / "coco_pope_random.json").open("a", encoding="utf-8") as file:
        file.write('{"question_id": 3, "image": "gone.jpg", "text": "Is it there?", "label": "yes"}\n')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(TESTS))
        report = run(
            folder,
            ["fp32", "wrong-3"],
            "bench_fakes:serve",
            task="pope",
            data=str(folder / "data"),
            scorer="pope/vlmevalkit",
        )
    return report, folder / "out"


def accuracy(report: Report, index: int) -> Accuracy:
    found = report.rows[index].accuracy
    assert found is not None, report.rows[index].reason
    return found


def test_report_names_scorer_template_files_and_what_was_left_out(measured: tuple[Report, Path]) -> None:
    found = accuracy(measured[0], 1)
    assert found.scorer.startswith("pope/vlmevalkit: ")
    assert found.template.startswith("llava: {hint}{question}")
    assert (found.split, found.n, found.total) == ("all", 6, 7)
    assert len(found.data_sha256) == 64
    assert found.skipped_items == [SkippedItem(id="random-3", reason="the picture is missing")]
    assert [figure.name for figure in found.figures][:3] == ["precision", "recall", "F1"]
    assert found.types[0].chance == 0.5


def test_pairs_are_made_of_what_both_answered(measured: tuple[Report, Path]) -> None:
    """Every third of seven is wrong: items 3 and 6, of which item 3 is the one without a picture."""
    paired = accuracy(measured[0], 1).paired
    assert paired is not None
    assert (paired.n, paired.lost, paired.gained) == (6, 1, 0)
    assert accuracy(measured[0], 0).overall.value == 1


def test_renderings_show_figures_and_skips(measured: tuple[Report, Path]) -> None:
    for text in (render_markdown(measured[0]), render_html(measured[0])):
        assert "F1" in text
        assert "the picture is missing" in text


def test_journals_are_gone_once_the_answers_are_kept(measured: tuple[Report, Path]) -> None:
    names = {path.name for path in (measured[1] / "predictions").iterdir()}
    assert names == {"fp32.jsonl", "wrong-3.jsonl"}


def test_a_killed_batch_goes_on_at_the_item(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    MAKERS["mme"][0](tmp_path / "data")
    bundle = hollow_bundle(tmp_path / "one")
    asked = settings(
        task="mme", data=str(tmp_path / "data"), items=0, split="", iterations=1, warmup=0, cached=0, silence_s=300
    )

    def again() -> Report:
        return sweep([bundle], asked, tmp_path / "out", progress=lambda *_: None, worker="resuming_worker:serve")

    first = again().rows[0]
    assert "SIGKILL" in first.reason
    found = accuracy(again(), 0)
    assert (found.n, found.overall.correct) == (28, 28)
    notes = (tmp_path / "one" / ASKED).read_text(encoding="utf-8").splitlines()
    assert len(notes) == 28 + 1  # only the item at which it was killed was asked twice
    assert notes[KILLED_AT - 1] == notes[KILLED_AT]
    lines = (tmp_path / "out" / "predictions" / "one.jsonl").read_text(encoding="utf-8").splitlines()
    assert len({json.loads(line)["id"] for line in lines}) == 28


def prediction(index: int, correct: bool, **changes: object) -> Prediction:
    fields = {
        "id": str(index),
        "image_id": str(index),
        "type": "all",
        "question": "?",
        "answer": "yes",
        "predicted": "Yes." if correct else "no",
        "token_ids": [1],
        "correct": correct,
        **changes,
    }
    return Prediction.model_validate(fields)


def test_a_journal_of_other_answers_is_set_aside_and_a_cut_line_dropped(tmp_path: Path) -> None:
    path = tmp_path / "row.journal"
    journal = Journal(path, "mine")
    journal.write(Answered(control=False, prediction=prediction(1, True)))
    journal.write(Missed(control=False, item=SkippedItem(id="2", reason="gone")))
    journal.write(Answered(control=True, prediction=prediction(1, False)))
    journal.close()
    with path.open("ab") as file:
        file.write(b'{"kind": "answered", "contr')
    assert read_journal(path, "theirs").asked == 0
    found = Journal(path, "mine")
    assert (found.known.asked, found.known.asked_control) == (2, 1)
    found.write(Answered(control=False, prediction=prediction(3, True)))
    found.close()
    assert [p.id for p in read_journal(path, "mine").predictions] == ["1", "3"]
    Journal(path, "theirs").close()
    assert read_journal(path, "mine").asked == 0


def test_answers_for_a_judge_are_written_and_not_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    MAKERS["mmvet"][0](tmp_path / "data")
    report = run(tmp_path, ["fp32"], "bench_fakes:serve", task="mmvet", data=str(tmp_path / "data"))
    found = accuracy(report, 0)
    assert (found.overall.value, found.types, found.unpaired_reason) == (None, [], UNSCORED)
    assert list(json.loads((tmp_path / "out" / found.submission_file).read_text(encoding="utf-8"))) == ["v1_0"]
    render_html(report)


def test_finished_runs_are_scored_anew_by_another_rule() -> None:
    runs = [prediction(i, True) for i in range(4)]
    assert all(p.correct for p in rescored(runs, "pope/official"))
    assert not any(p.correct for p in rescored(runs, "pope/lmms-eval"))
    found = compare_runs(runs, runs[1:], "b", task="pope", scorer="pope/vlmevalkit", margin=0.02, seed=0)
    assert (found.paired.n, found.left_out) == (3, 1)
    assert {mine.name: mine.value for mine, _ in found.figures}["F1"] == 1


def test_partial_credit_is_a_mean_with_a_bootstrap_over_images() -> None:
    runs = [prediction(i, i % 2 == 0, score=0.9 if i % 2 == 0 else 0.3, image_id=str(i // 4)) for i in range(40)]
    share = score(runs)
    assert share.value == pytest.approx(0.6)
    assert share.correct == 20
    assert share.low is not None
    assert share.low == pytest.approx(0.6)  # every image has the same mean


def test_compare_verb_gates_and_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def write(name: str, runs: list[Prediction]) -> Path:
        path = tmp_path / name
        path.write_text("".join(p.model_dump_json(exclude_defaults=True) + "\n" for p in runs), encoding="utf-8")
        return path

    good = write("good.jsonl", [prediction(i, True) for i in range(400)])
    worse = write("worse.jsonl", [prediction(i, i % 10 > 0) for i in range(400)])
    assert code("data", "compare", good, good, "--gate", "accuracy_drop<=1.0") == 0
    shown = capsys.readouterr().out
    assert "smallest detectable drop" in shown
    assert code("data", "compare", worse, good, "--gate", "accuracy_drop<=1.0") == 1
    assert "the gate accuracy_drop<=1.0 does not hold: worse" in capsys.readouterr().err
    assert code("data", "compare", worse, good) == 0
    broken_file = tmp_path / "broken.jsonl"
    broken_file.write_text("{}\n", encoding="utf-8")
    twice = write("twice.jsonl", [prediction(1, True), prediction(1, True)])
    for wrong in (broken_file, tmp_path / "none.jsonl", twice):
        assert code("data", "compare", wrong, good) == 2
    assert "line 2 answers the item" in capsys.readouterr().err


def test_gate_names_bundles_that_lose_or_were_not_compared(measured: tuple[Report, Path]) -> None:
    (problem,) = broken(measured[0])
    assert problem.startswith("wrong-3: ")
    failed = measured[0].rows[1].model_copy(update={"accuracy": None, "status": "failed", "reason": "it crashed"})
    report = measured[0].model_copy(update={"rows": [measured[0].rows[0], failed]})
    assert broken(report) == ["wrong-3: not compared: it crashed"]
    assert broken(measured[0].model_copy(update={"rows": measured[0].rows[:1]})) == []


@pytest.mark.parametrize("gate", ["accuracy_drop<1", "accuracy<=1", "accuracy_drop<=-1", "accuracy_drop<=0", "1"])
def test_gates_of_another_form_are_refused(gate: str) -> None:
    assert drop_of(" accuracy_drop <= 1.5") == 1.5
    with pytest.raises(InputError):
        drop_of(gate)


def test_likeliest_tokens_are_those_of_the_softmax() -> None:
    logits = np.random.default_rng(0).normal(0, 5, 1000).astype(np.float32)
    expected = scipy_special.log_softmax(logits.astype(np.float64))
    found = likeliest(logits)
    assert len(found) == FIRST_TOKENS
    assert [token for token, _ in found] == np.argsort(-expected)[:FIRST_TOKENS].tolist()
    assert [value for _, value in found] == pytest.approx(np.sort(expected)[::-1][:FIRST_TOKENS].tolist())


def _with_first(logits: np.ndarray, kept: int) -> Prediction:
    order = np.argsort(-logits)[:kept]
    values = scipy_special.log_softmax(logits)
    return prediction(1, True, top_tokens=order.tolist(), top_logprobs=values[order].tolist())


def test_divergence_is_that_of_scipy_and_a_lower_bound_where_tokens_are_merged() -> None:
    rng = np.random.default_rng(1)
    p, q = rng.normal(0, 2, 40), rng.normal(0, 2, 40)
    exact = scipy_stats.entropy(scipy_special.softmax(p), scipy_special.softmax(q))
    assert divergence(_with_first(p, 40), _with_first(q, 40)) == pytest.approx(exact, rel=1e-6)
    assert 0 < divergence(_with_first(p, 12), _with_first(q, 12)) <= exact
    assert divergence(_with_first(p, 12), _with_first(p, 12)) == pytest.approx(0, abs=1e-9)


def test_first_token_agreement() -> None:
    a = prediction(1, True, top_tokens=[5, 6], top_logprobs=[-0.1, -2.5])
    b = prediction(2, True, top_tokens=[6, 5], top_logprobs=[-0.1, -2.5])
    found = first_token([a, a], [a, b])
    assert found is not None
    assert (found.n, found.agreement) == (2, 0.5)
    assert first_token([a], [prediction(1, True)]) is None


def test_verify_verb_counts_hashes_and_opens_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    MAKERS["docvqa"][0](tmp_path)
    assert code("data", "verify", tmp_path, "--set", "docvqa") == 1
    captured = capsys.readouterr()
    assert "not as published: questions" in captured.err
    assert "5,349" in captured.out
    MAKERS["llava"][0](tmp_path)
    assert code("data", "verify", tmp_path, "--set", "llava") == 0
    (tmp_path / "images" / "1.jpg").unlink()
    assert code("data", "verify", tmp_path, "--set", "llava") == 1
    assert "1.jpg: the picture is missing" in capsys.readouterr().out
    assert code("data", "verify", tmp_path, "--set", "trivia") == 2
    assert code("data", "verify", tmp_path / "nowhere", "--set", "llava") == 2
    picture(tmp_path / "images" / "1.jpg")
    (tmp_path / "POPE.tsv").write_text("index\timage\tquestion\n", encoding="utf-8")
    assert code("data", "verify", tmp_path, "--set", "pope") == 1
    assert "c12f5acb142f2ef1f85a26ba2fbe41d5" in capsys.readouterr().out


def test_pictures_of_one_name_in_two_folders_are_both_opened(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """MME numbers the pictures of several sub-tasks alike."""
    MAKERS["mme"][0](tmp_path)
    images = tmp_path / "MME_Benchmark_release_version"
    assert code("data", "verify", tmp_path, "--set", "mme") == 1
    assert "14 open" in capsys.readouterr().out
    listed = tmp_path / "eval_tool" / "Your_Results" / "count.txt"
    listed.write_text(listed.read_text(encoding="utf-8").replace("1.jpg", "0.jpg"), encoding="utf-8")
    assert not (images / "count" / "0.jpg").exists()
    assert code("data", "verify", tmp_path, "--set", "mme") == 1
    assert "13 open, 1 (0.jpg: the picture is missing) do not" in capsys.readouterr().out


def test_list_verb_names_every_set_and_scorer(capsys: pytest.CaptureFixture[str]) -> None:
    assert code("data", "list") == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("vqav2", "pope/lmms-eval", "naturalbench", "MMBench_DEV_EN.tsv"))
