"""What a study has done so far, in its output folder: one JSON line that says which study it is, then one a cell.

The file is written whole and renamed, so it never holds half a line. A cell counts as done only if its predictions are
there as well, byte for byte. A study goes on only with the very setting that its first cells were measured in.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from edgevlm.atomic import write_text
from edgevlm.bench.job import Prediction
from edgevlm.bench.predictions import read_jsonl
from edgevlm.bench.report import Environment, Part, Row
from edgevlm.bench.study.timing import untimed
from edgevlm.bundle import sha256_file
from edgevlm.errors import InputError

STATE = "study.jsonl"
_MAX_BYTES = 1 << 30


class Setting(Part):
    """What all cells of a study share.

    Attributes:
        model: hash of the checkpoint's files.
        recipe: of the unpruned model.
        measuring: items, timings, engines, threads.
        machine: processor, cores and versions.
    """

    model: str
    recipe: dict[str, Any]
    measuring: dict[str, Any]
    machine: dict[str, Any]

    def difference(self, other: Setting) -> str:
        """The first thing in which `other` differs, as `what: here, there`; empty if nothing does."""
        if self.model != other.model:
            return "the checkpoint's files"
        for own, theirs in (
            (self.recipe, other.recipe),
            (self.measuring, other.measuring),
            (self.machine, other.machine),
        ):
            for name in {**own, **theirs}:
                if own.get(name) != theirs.get(name):
                    return f"{name} is {own.get(name)} now and was {theirs.get(name)}"
        return ""


class _Head(Part):
    """The first line."""

    setting: Setting
    environment: Environment


class _Line(Part):
    """A cell."""

    row: Row
    commit: str = Field(description="of the source that measured it; empty where unknown")


class State:
    """The cells that are done."""

    def __init__(self, out: Path, setting: Setting, environment: Environment) -> None:
        """Begin a study in `out`, or go on with the same one.

        Raises:
            InputError: `out` holds another study, or one that cannot be read.
        """
        self._out, self._file = out, out / STATE
        self._head = _Head(setting=setting, environment=environment)
        self._lines: dict[str, _Line] = {}
        if self._file.exists():
            self._read()

    def _read(self) -> None:
        try:
            if self._file.stat().st_size > _MAX_BYTES:
                raise ValueError("it is too large")
            first, *lines = self._file.read_text(encoding="utf-8").splitlines()
            head = _Head.model_validate_json(first)
            parsed = [_Line.model_validate_json(line) for line in lines]
        except (OSError, ValueError, ValidationError) as error:
            raise InputError(
                f"the study here cannot be read: {str(error).splitlines()[0]}", str(self._file), "add --restart"
            ) from error
        different = self._head.setting.difference(head.setting)
        if different:
            raise InputError(
                f"another study is here: {different}",
                str(self._out),
                "choose another -o, or add --restart to replace it",
            )
        self._head = head
        self._lines = {line.row.name: line for line in parsed if self._complete(line.row)}

    def _complete(self, row: Row) -> bool:
        """Whether the answers that the row speaks of are there."""
        if row.accuracy is None:
            return row.status != "ok"
        file = self._predictions(row)
        return file is not None and file.is_file() and sha256_file(file) == row.accuracy.predictions_sha256

    def _predictions(self, row: Row) -> Path | None:
        """The file beside the report; None where a state from elsewhere names one outside."""
        assert row.accuracy is not None
        file = (self._out / row.accuracy.predictions_file).resolve()
        return file if file.is_relative_to(self._out.resolve()) else None

    def done(self, name: str) -> Row | None:
        """The row of a cell that is done."""
        line = self._lines.get(name)
        return None if line is None else line.row

    def answers(self, row: Row) -> list[Prediction]:
        """The answers of a row that is done."""
        file = self._predictions(row) if row.accuracy is not None else None
        assert row.accuracy is not None
        found = read_jsonl(file, row.accuracy.n) if file is not None else None
        if found is None:
            raise InputError("the answers of a cell cannot be read", str(file), "run the study again")
        return found

    def add(self, row: Row, commit: str | None) -> None:
        """Note that a cell is done."""
        self._lines[row.name] = _Line(row=row, commit=commit or "")
        self._write()

    def forget_failures(self) -> None:
        """Let cells be tried again that failed, or could not be timed."""
        self._lines = {
            name: line.model_copy(update={"row": untimed(line.row)})
            for name, line in self._lines.items()
            if line.row.status != "failed"
        }

    @property
    def environment(self) -> Environment:
        """Where the study began, with the source versions of all its cells."""
        commits = dict.fromkeys(line.commit for line in self._lines.values() if line.commit)
        known = ", ".join(commits) or self._head.environment.git_commit
        return self._head.environment.model_copy(update={"git_commit": known})

    def _write(self) -> None:
        lines = [self._head, *self._lines.values()]
        write_text(self._file, "".join(json.dumps(line.model_dump(mode="json")) + "\n" for line in lines))


def clear(out: Path) -> None:
    """Remove a study's state, answers and bundles; a folder without a study stays as it is."""
    if not (out / STATE).exists():
        return
    for folder in ("predictions", "bundles"):
        shutil.rmtree(out / folder, ignore_errors=True)
    (out / STATE).unlink()
