"""Reports of older age are read, and what is no report, or a newer one, is refused with the reason."""

import json
from pathlib import Path

import pytest
from made_reports import accuracy, report, row, save, scored

from edgevlm.bench.reading import read_predictions, read_report
from edgevlm.errors import InputError


def test_report_is_read_from_its_file_or_its_folder(tmp_path: Path) -> None:
    made = report(row("a", n=6))
    file = save(tmp_path, made)
    assert read_report(file).report == made
    assert read_report(tmp_path) == read_report(file)


def test_report_without_the_fields_that_came_later_is_read(tmp_path: Path) -> None:
    """Whatever has been added since the first version must have a default; these were not there in the beginning."""
    file = save(tmp_path, report(row("a", n=6)))
    data = json.loads(file.read_text(encoding="utf-8"))
    for name in ("sensors", "study"):
        del data[name]
    for name in ("kv_cache", "idle_s"):
        del data["settings"][name]
    for name in ("notes", "pruning", "energy", "heat", "resolution", "passes"):
        del data["rows"][0][name]
    del data["rows"][0]["latency"]["cold"]["fusion_ms"], data["rows"][0]["latency"]["stages"]["fusion_ms"]
    file.write_text(json.dumps(data), encoding="utf-8")
    assert read_report(file).report.rows[0].name == "a"


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (None, "cannot read the report"),
        (b"{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"\xff", "not JSON"),
        (b"[]", "no schema_version"),
        (b'{"schema_version": true}', "no schema_version"),
        (b'{"schema_version": 2}', "version 2 of the format; this EdgeVLM reads up to 1"),
        (b'{"schema_version": 1, "rows": 3}', "not a report: "),
    ],
)
def test_what_is_no_report_is_refused(tmp_path: Path, content: bytes | None, what: str) -> None:
    file = tmp_path / "report.json"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError, match=what) as refused:
        read_report(file)
    assert refused.value.where == str(file)
    assert refused.value.hint


def test_answers_are_read_only_from_beside_the_report_and_unchanged(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    file, right = folder / "report.json", scored(folder, [True, False])
    assert [each.correct for each in read_predictions(file, right)] == [True, False]  # type: ignore[union-attr]
    for name in ("/etc/hostname", "../outside.jsonl", ""):
        assert isinstance(read_predictions(file, right.model_copy(update={"predictions_file": name})), str)
    (tmp_path / "outside.jsonl").write_text((folder / "answers.jsonl").read_text(encoding="utf-8"), encoding="utf-8")
    (folder / "link.jsonl").symlink_to(tmp_path / "outside.jsonl")
    assert isinstance(read_predictions(file, right.model_copy(update={"predictions_file": "link.jsonl"})), str)
    assert isinstance(read_predictions(file, accuracy(1, 2)), str)
