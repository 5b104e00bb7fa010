"""`edgevlm study prune`: a real small study whose cells are what `edgevlm export` writes; bad input in one line."""

import json
from pathlib import Path

import pytest

from edgevlm.bench.report import Report
from edgevlm.bundle import open_bundle
from edgevlm.cli import main
from edgevlm.zoo.synth import synth


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as leaving:
        main([*map(str, arguments)])
    assert isinstance(leaving.value.code, int)
    return leaving.value.code


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    synth("llava-1.5-7b", folder, tiny=True)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.*")}


def test_a_study_of_a_small_model(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answers of random weights are noise; tokens, bundles, comparisons and times are real."""
    out = tmp_path / "out"
    arguments: list[object] = [
        "study",
        "prune",
        checkpoint,
        "--methods",
        "fastervlm",
        "--keep",
        "25",
        "--precision",
        "fp32",
    ]
    arguments += ["-n", 8, "--iterations", 6, "--min-time", 0, "--image-size", "96x64", "--max-tokens", 3]
    arguments += ["--vision-engine", "onnxruntime", "--threads", 1, "--save-bundles", "-o", out]
    assert run(*arguments, "--json") == 0
    report = Report.model_validate(json.loads(capsys.readouterr().out))
    assert [(row.name, row.status) for row in report.rows] == [
        ("unpruned", "ok"),
        ("fastervlm 4", "ok"),
    ]
    for row, tokens in zip(report.rows, (16, 4), strict=True):
        assert row.latency is not None
        assert row.latency.image_tokens == tokens
        assert all(parity.passed for parity in row.parity)
        assert row.vision_engine is not None
        assert row.vision_engine.name.startswith("onnxruntime")
    cell = report.rows[1].pruning
    assert cell is not None
    assert cell.method_ms is not None
    assert cell.method_ms.n >= 20
    # A cell's bundle is the one that its command writes.
    monkeypatch.chdir(tmp_path)
    assert run(*cell.export[1:]) == 0
    assert contents(tmp_path / "fastervlm_4") == contents(out / "bundles" / "fastervlm_4")
    assert open_bundle(tmp_path / "fastervlm_4").spec.vision.image_tokens == 4
    capsys.readouterr()
    # Nothing is left to do, so that the same report comes at once.
    before = {path: path.stat().st_mtime_ns for path in (out / "predictions").iterdir()}
    assert run(*arguments) == 0
    assert "Report:" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in (out / "predictions").iterdir()}
    again = Report.model_validate_json((out / "report.json").read_text(encoding="utf-8"))
    assert again.rows == report.rows


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"--methods": "fastervln"}, "there is no token reducer 'fastervln'"),
        ({"--methods": "uniform:colour=red"}, "uniform option 'colour'"),
        ({"--methods": "uniform,,pool"}, "'' is not a method"),
        ({"--keep": "0"}, "'0' is not a percentage"),
        ({"--keep": "150"}, "'150' is not a percentage"),
        ({"--tasks": "trivia"}, "'trivia' is not"),
        ({"--split": "exam"}, "unknown split 'exam'"),
        ({"--precision": "int3"}, "'int3' is not"),
        ({"--image-size": "big"}, "'big' is not WIDTHxHEIGHT"),
        ({"--resolution": "100"}, "resolution 100 is not a multiple"),
        ({"MODEL": "zoo:no-such-model"}, "no zoo model"),
    ],
)
def test_bad_input_is_told_before_any_work(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, str], said: str
) -> None:
    options = {"--methods": "uniform", **changes}
    model = options.pop("MODEL", checkpoint)
    flags = [part for pair in options.items() for part in pair]
    assert run("study", "prune", model, *flags, "-o", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert said in error
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_help_says_what_the_percentages_are_of(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("study", "prune", "--help") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "Tokens to keep, in percent of the unpruned model's." in shown


def test_a_folder_that_cannot_be_written_is_told(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    assert run("study", "prune", checkpoint, "--methods", "uniform", "-o", tmp_path / "file" / "out") == 2
    assert "cannot write here" in capsys.readouterr().err
