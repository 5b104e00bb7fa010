"""`edgevlm bench` refuses bad input in one line before any work, and its exit code tells how the sweep ended."""

import json
from pathlib import Path

import pytest
from bench_bundles import hollow_bundle

from edgevlm.bench.report import Report
from edgevlm.cli import main


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as leaving:
        main(["bench", *map(str, arguments)])
    assert isinstance(leaving.value.code, int)
    return leaving.value.code


@pytest.mark.parametrize(
    "arguments",
    [
        ["--tasks", "trivia"],
        ["--tasks", "scenes", "--split", "exam"],
        ["--image-size", "big"],
        ["--image-size", "0x10"],
        ["--decoder-engine", "abacus"],
        ["-n", "0"],
        ["--threads", "1,1"],
        ["--threads", "two"],
        ["--resolution", "0"],
        ["--resolution", "512,"],
        ["--scenario", "server"],
        ["--tasks", "scenes", "--baseline", "zoo:no-such-model"],
    ],
)
def test_bad_options_end_with_code_2_and_leave_no_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    bundle = hollow_bundle(tmp_path / "bundle").path
    assert run(bundle, "-o", tmp_path / "out", *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "Traceback" not in error
    assert not (tmp_path / "out" / "report.json").exists()


def test_folder_that_is_no_bundle_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "-o", tmp_path / "out") == 2
    assert "not a bundle" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_output_that_cannot_be_written_is_told_before_measuring(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    bundle = hollow_bundle(tmp_path / "bundle").path
    assert run(bundle, "-o", tmp_path / "file" / "out") == 2
    assert "cannot write here" in capsys.readouterr().err


def test_failed_bundle_gives_code_1_and_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The bundle's files hold no graphs, so the real engines cannot load it."""
    out = tmp_path / "out"
    bundle = hollow_bundle(tmp_path / "bundle").path
    assert run(bundle, "-o", out, "--json", "--vision-engine", "onnxruntime") == 1
    shown = capsys.readouterr()
    report = Report.model_validate(json.loads(shown.out))
    assert [(row.status, row.failed_stage) for row in report.rows] == [("failed", "load")]
    assert report.rows[0].reason
    assert "1 of 1 could not be measured: bundle" in shown.err
    assert (out / "report.html").is_file()
