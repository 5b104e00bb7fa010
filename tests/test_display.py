"""Progress and tables: plain where nobody watches, safe whatever text comes in."""

import io

import pytest

from edgevlm.progress import duration, show_progress, sparse_lines
from edgevlm.tables import print_table, printable


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_quick_work_prints_no_progress_into_a_log() -> None:
    log = io.StringIO()
    with show_progress("export", log) as report:
        report(1, 2, "half")
        report(2, 2, "done")
    assert log.getvalue() == ""


def test_long_work_prints_sparse_lines_with_the_time_left() -> None:
    log, now = io.StringIO(), [0.0]
    report = sparse_lines("export", log, clock=lambda: now[0])
    for second in range(0, 61, 5):
        now[0] = second
        report(second, 240, "weights")
    assert log.getvalue().splitlines() == [
        "export:   8% weights (20 s, about 3 min 40 s left)",
        "export:  17% weights (40 s, about 3 min 20 s left)",
        "export:  25% weights (1 min 00 s, about 3 min 00 s left)",
    ]


def test_work_of_unknown_length_is_no_division_by_zero() -> None:
    log, now = io.StringIO(), [0.0]
    report = sparse_lines("export", log, clock=lambda: now[0])
    now[0] = 30
    report(0, 0, "weights")
    assert log.getvalue() == "export:   0% weights (30 s)\n"


def test_terminal_sees_a_bar_that_goes_away() -> None:
    terminal = _Terminal()
    with show_progress("export", terminal) as report:
        report(1, 2, "decoder [bold] weights")
    assert "export" in terminal.getvalue()
    assert "[bold]" in terminal.getvalue()


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (59, "59 s"), (61, "1 min 01 s"), (7800, "2 h 10 min")])
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_printable_disarms_control_characters() -> None:
    assert printable("a\tb\nc\x1b[2J\x00\u202e") == "a b c\\x1b[2J\\x00\\u202e"
    assert printable("größe 7") == "größe 7"


def test_table_in_a_file_is_uncut_and_aligned() -> None:
    out = io.StringIO()
    print_table(["name", "MB"], [["x" * 300, "1"], ["[red]y", "22"]], title="Sizes", numeric=["MB"], stream=out)
    lines = out.getvalue().splitlines()
    assert lines[0] == "Sizes"
    assert f"{'x' * 300}    1" in lines[3]
    assert lines[4].split() == ["[red]y", "22"]
    assert len(lines) == 5


def test_table_row_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="1 cells"):
        print_table(["a", "b"], [["1"]], stream=io.StringIO())
