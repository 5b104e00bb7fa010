"""A study goes on only where it is the same study, and only what is whole counts as done."""

from pathlib import Path

import pytest

from edgevlm.bench.environment import environment, now
from edgevlm.bench.report import Report, Row
from edgevlm.bench.study.state import STATE, Setting, State, clear
from edgevlm.errors import InputError

Studied = tuple[Report, Path]
SETTING = Setting(model="a", recipe={"precision": "fp32"}, measuring={"items": 24}, machine={"torch": "2.13.0"})


@pytest.fixture
def rows(studied: Studied) -> dict[str, Row]:
    return {row.name: row for row in studied[0].rows}


def opened(out: Path, setting: Setting = SETTING) -> State:
    return State(out, setting, environment(now()))


def copied(studied: Studied, row: Row, out: Path) -> Path:
    """The row's predictions, beside another study."""
    assert row.accuracy is not None
    file = out / row.accuracy.predictions_file
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes((studied[1] / row.accuracy.predictions_file).read_bytes())
    return file


def test_what_was_added_is_there_again(studied: Studied, rows: dict[str, Row], tmp_path: Path) -> None:
    row = rows["uniform 18"]
    copied(studied, row, tmp_path)
    first = opened(tmp_path)
    first.add(row, "abc")
    first.add(rows["resolution 16"], "def")
    again = opened(tmp_path)
    assert again.done("uniform 18") == row
    assert len(again.answers(row)) == 24
    assert again.done("resolution 16") == rows["resolution 16"]
    assert again.done("uniform 9") is None
    assert again.environment.git_commit == "abc, def"
    again.forget_failures()
    assert again.done("resolution 16") is None
    assert again.done("uniform 18") == row


def test_a_cell_without_its_answers_is_not_done(studied: Studied, rows: dict[str, Row], tmp_path: Path) -> None:
    row = rows["uniform 18"]
    file = copied(studied, row, tmp_path)
    opened(tmp_path).add(row, None)
    file.write_text(file.read_text(encoding="utf-8").replace("true", "false"), encoding="utf-8")
    assert opened(tmp_path).done("uniform 18") is None


def test_a_state_from_elsewhere_reaches_no_file_outside(studied: Studied, rows: dict[str, Row], tmp_path: Path) -> None:
    row = rows["uniform 18"]
    assert row.accuracy is not None
    copied(studied, row, tmp_path)
    outside = f"../{row.accuracy.predictions_file}"
    accuracy = row.accuracy.model_copy(update={"predictions_file": outside})
    inner = tmp_path / "inner"
    inner.mkdir()
    opened(inner).add(row.model_copy(update={"accuracy": accuracy}), None)
    assert (inner / outside).is_file()
    assert opened(inner).done("uniform 18") is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": "b"}, "the checkpoint's files"),
        ({"recipe": {"precision": "int4"}}, "precision is int4 now and was fp32"),
        ({"measuring": {"items": 25}}, "items is 25 now and was 24"),
        ({"machine": {"torch": "2.14.0"}}, "torch is 2.14.0 now and was 2.13.0"),
    ],
)
def test_another_study_is_refused_and_named(
    rows: dict[str, Row], tmp_path: Path, change: dict[str, object], said: str
) -> None:
    opened(tmp_path).add(rows["resolution 16"], None)
    with pytest.raises(InputError, match=said) as refused:
        opened(tmp_path, SETTING.model_copy(update=change))
    assert "--restart" in refused.value.hint


@pytest.mark.parametrize("text", ["", "{}\n", "no json\n", '{"setting": 1}\n'])
def test_a_state_that_cannot_be_read_says_what_to_do(tmp_path: Path, text: str) -> None:
    (tmp_path / STATE).write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match="cannot be read") as refused:
        opened(tmp_path)
    assert "--restart" in refused.value.hint
    clear(tmp_path)
    opened(tmp_path)


def test_clearing_leaves_what_is_not_the_studys(tmp_path: Path) -> None:
    for name in ("predictions/a.jsonl", "bundles/a/x", "mine.txt", STATE):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x", encoding="utf-8")
    clear(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    (tmp_path / "predictions").mkdir()
    clear(tmp_path)
    assert (tmp_path / "predictions").is_dir()
