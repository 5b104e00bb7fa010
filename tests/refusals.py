"""What bad input must come to on the command line: three lines (what, where, what to do), exit code 2, no output."""

from collections.abc import Callable
from pathlib import Path

import pytest

from edgevlm.cli import main

#: Runs the command line, checks the refusal, and gives the three lines without their labels.
Refused = Callable[..., list[str]]


def refusal(capsys: pytest.CaptureFixture[str]) -> Refused:
    """A `Refused` that reads this capture."""

    def run(*arguments: object) -> list[str]:
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        return three_lines(caught.value.code, capsys.readouterr().err)

    return run


def three_lines(code: object, err: str) -> list[str]:
    """The lines of standard error without their labels; none is empty, and there is nothing else."""
    lines = err.splitlines()
    assert [line.split(": ")[0] for line in lines] == ["error", "where", "hint"], err
    assert code == 2, err
    parts = [line.split(": ", 1)[1] for line in lines]
    assert all(parts), err
    assert "a fault in edgevlm" not in err
    return parts


def left_in(folder: Path, *expected: str) -> None:
    """Nothing in `folder` but what was there before: no output, no temporary sibling."""
    assert sorted(path.name for path in folder.iterdir()) == sorted(expected)


def refused_export(refused: Refused, checkpoint: Path, *flags: object) -> str:
    """The message of an export that is refused and writes nothing."""
    out = checkpoint.parent / "out" / "bundle"
    out.parent.mkdir()
    lines = refused("export", checkpoint, "-o", out, *flags)
    left_in(out.parent)
    return "\n".join(lines)
