"""A sweep ends with a row for every bundle, whatever a runtime does to its process."""

import json
from pathlib import Path

import pytest
from bench_bundles import hollow_bundle, settings

from edgevlm.bench import measured
from edgevlm.bench.baseline import Reference, reference_of
from edgevlm.bench.job import Job, Loaded, Message, Prediction
from edgevlm.bench.pace import Pace
from edgevlm.bench.plan import plan
from edgevlm.bench.predictions import read_jsonl, store
from edgevlm.bench.report import Engine, Report, Row
from edgevlm.bench.sweep import sweep
from edgevlm.bundle import Bundle
from edgevlm.errors import InputError

Swept = tuple[Report, Path]


def row(swept: Swept, name: str) -> Row:
    return next(row for row in swept[0].rows if row.name == name)


def test_every_bundle_has_a_row_and_the_baseline_comes_first(swept: Swept) -> None:
    assert swept[0].rows[0].name == "fp32"
    assert {row.name: row.status for row in swept[0].rows} == {
        "fp32": "ok",
        "wrong-3": "ok",
        **dict.fromkeys(("crash", "size", "gaps", "exception", "load"), "failed"),
    }


@pytest.mark.parametrize(
    ("name", "stage", "reason"),
    [
        ("crash", "latency", "SIGSEGV"),
        ("size", "latency", r"[1, 63, 256] instead of [1, 64, 256]"),
        ("gaps", "latency", "12 token gaps for 12 tokens"),
        ("exception", "latency", "an engine's own exception"),
        ("load", "load", "cannot load this graph"),
    ],
)
def test_failed_row_says_where_and_why(swept: Swept, name: str, stage: str, reason: str) -> None:
    failed = row(swept, name)
    assert failed.failed_stage == stage
    assert reason in failed.reason
    assert failed.latency is None
    assert failed.accuracy is None
    assert failed.total_bytes == 5000


def test_worker_that_falls_silent_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))
    asked = settings(task=None, silence_s=6)
    report = sweep(
        [hollow_bundle(tmp_path / "hang")], asked, tmp_path, progress=lambda *_: None, worker="bench_fakes:serve"
    )
    assert report.rows[0].status == "failed"
    assert "no answer for 6 s" in report.rows[0].reason


@pytest.mark.parametrize(("name", "reason"), [("crash-late", "SIGSEGV"), ("hang-late", "no answer for 6 s")])
def test_failure_among_the_items_keeps_times_and_answers(
    name: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))
    bundle, asked = hollow_bundle(tmp_path / name), settings(items=20, silence_s=6)

    def run() -> Row:
        return sweep([bundle], asked, tmp_path / "out", progress=lambda *_: None, worker="bench_fakes:serve").rows[0]

    failed = run()
    assert (failed.status, failed.failed_stage, failed.accuracy) == ("failed", "accuracy", None)
    assert reason in failed.reason
    assert failed.latency is not None
    assert failed.latency.ttft_steady_ms.n == 8
    again = run()
    assert again.status == "ok", "items that were answered are not asked again, and few enough are left"
    assert again.accuracy is not None
    assert again.accuracy.overall.correct == 20


def test_measured_row_has_every_figure(swept: Swept) -> None:
    found = row(swept, "wrong-3")
    assert found.latency is not None
    assert found.memory is not None
    assert found.accuracy is not None
    assert found.vision_engine is not None
    assert found.latency.ttft_steady_ms.n == 8
    assert found.memory.peak_rss_bytes > 20e6
    assert found.accuracy.overall.correct == 20
    assert found.accuracy.control is not None
    assert found.accuracy.control.correct == 0
    assert found.bits_per_weight == pytest.approx((2000 * 16 + 1777 * 4.5) / 3777, rel=1e-3)


def test_pairing_with_the_baseline_bundle(swept: Swept) -> None:
    found = row(swept, "wrong-3").accuracy
    assert found is not None
    assert found.paired is not None
    assert (found.paired.baseline, found.paired.lost, found.paired.gained) == ("fp32", 10, 0)
    assert found.paired.delta.value == pytest.approx(-1 / 3)
    assert found.paired.verdict == "worse"
    first = row(swept, "fp32").accuracy
    assert first is not None
    assert first.paired is None
    assert first.unpaired_reason == "it is the baseline"


def test_predictions_are_kept_as_json_lines(swept: Swept) -> None:
    found = row(swept, "wrong-3").accuracy
    assert found is not None
    lines = (swept[1] / found.predictions_file).read_text(encoding="utf-8").splitlines()
    assert len(lines) == 30
    assert sum(json.loads(line)["correct"] for line in lines) == 20


def _interrupted(*_: object) -> measured.Measured:
    raise KeyboardInterrupt


def test_interruption_keeps_the_rows_so_far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgevlm.bench.sweep.run_worker", _interrupted)
    bundles = [hollow_bundle(tmp_path / name) for name in ("a", "b")]
    report = sweep(bundles, settings(task=None), tmp_path / "out", progress=lambda *_: None)
    assert report.interrupted
    assert [(row.status, row.reason) for row in report.rows] == [
        ("skipped", "interrupted"),
        ("skipped", "not measured"),
    ]


def test_bundles_of_one_folder_name_are_told_apart(tmp_path: Path) -> None:
    bundles = [hollow_bundle(tmp_path / name) for name in ("a/onnx", "b/onnx", "b/gguf")]
    names = [work.name for work in plan([*bundles, bundles[2]], settings(task=None), None)]
    assert names == ["a/onnx", "b/onnx", "gguf (3)", "gguf (4)"]


@pytest.mark.parametrize("changes", [{"task": "trivia"}, {"split": "exam"}])
def test_unknown_task_or_split_is_refused_before_any_work(tmp_path: Path, changes: dict[str, object]) -> None:
    with pytest.raises(InputError, match="unknown"):
        plan([hollow_bundle(tmp_path / "a")], settings(**changes), None)


def _made_from(tmp_path: Path) -> tuple[Path, Bundle]:
    """A checkpoint's folder and a bundle whose manifest names it."""
    import hashlib

    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_text("{}", encoding="utf-8")
    (source / "model.safetensors").write_bytes(b"weights")
    bundle = hollow_bundle(tmp_path / "bundle")
    manifest = bundle.manifest.model_copy(
        update={
            "recipe": {"model": str(source)},
            "source_sha256": {"model.safetensors": hashlib.sha256(b"weights").hexdigest()},
        }
    )
    return source, Bundle(bundle.path, manifest, bundle.spec)


def test_source_checkpoint_is_the_default_baseline(tmp_path: Path) -> None:
    _, bundle = _made_from(tmp_path)
    works = plan([bundle], settings(), None)
    assert [work.job.kind for work in works] == ["reference", "bundle"]
    assert works[1].baseline == works[0].name == "source (uncompressed)"
    assert works[0].job.latency is None


def test_another_checkpoint_under_the_same_name_is_no_baseline(tmp_path: Path) -> None:
    source, bundle = _made_from(tmp_path)
    (source / "model.safetensors").write_bytes(b"other weights")
    found = reference_of(bundle)
    assert isinstance(found, str)
    assert "not the checkpoint that the bundle was made from" in found


@pytest.mark.parametrize(
    ("update", "reason"),
    [
        ({"recipe": {"model": "someone/some-model"}}, "name the model with --baseline"),
        ({"source_sha256": {"../other": "0" * 64}}, "outside the checkpoint"),
        ({"source_sha256": {}}, "names no source model"),
        ({"recipe": {}}, "names no source model"),
    ],
)
def test_manifest_of_a_stranger_fetches_and_reaches_nothing(
    tmp_path: Path, update: dict[str, object], reason: str
) -> None:
    _, bundle = _made_from(tmp_path)
    found = reference_of(Bundle(bundle.path, bundle.manifest.model_copy(update=update), bundle.spec))
    assert isinstance(found, str)
    assert reason in found


def test_missing_checkpoint_gives_a_reason_and_the_sweep_goes_on(tmp_path: Path) -> None:
    works = plan([hollow_bundle(tmp_path / "bundle")], settings(), None)
    assert len(works) == 1
    assert "source model" in works[0].reason


def test_content_hash_changes_with_the_weights(tmp_path: Path) -> None:
    source, bundle = _made_from(tmp_path)
    before = reference_of(bundle)
    (source / "config.json").write_text('{"changed": 1}', encoding="utf-8")
    after = reference_of(bundle)
    assert isinstance(before, Reference)
    assert isinstance(after, Reference)
    assert before.content != after.content


def test_damaged_predictions_are_asked_again(tmp_path: Path) -> None:
    prediction = Prediction(
        id="1", image_id="1", type="colour", question="?", answer="red", predicted="red", token_ids=[1], correct=True
    )
    file = tmp_path / "cache" / "answers.jsonl"
    assert read_jsonl(file, 2) is None
    store(file, [prediction, prediction])
    assert read_jsonl(file, 2) == [prediction, prediction]
    assert read_jsonl(file, 3) is None
    file.write_text(file.read_text(encoding="utf-8")[:-20], encoding="utf-8")
    assert read_jsonl(file, 2) is None


def test_time_left_counts_the_jobs_to_come() -> None:
    now = 0.0
    calls: list[tuple[float, float, str]] = []
    pace = Pace([Job(kind="bundle", path="a")] * 2, lambda *call: calls.append(call), clock=lambda: now)
    engine = Engine(name="fake", details={})
    loaded: Message = Loaded(load_ms=1, vision_engine=engine, decoder_engine=engine)
    pace.begin("a")
    now = 10.0
    pace.step(loaded)
    pace.end()
    pace.begin("b")
    done, total, what = calls[-1]
    assert (done, what) == (10.0, "2/2 b: load")
    assert total > done
    now = 20.0
    pace.step(loaded)
    assert calls[-1][1] == pytest.approx(30, rel=0.5)
