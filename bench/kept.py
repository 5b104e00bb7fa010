"""The rows that a sweep has measured so far, in its output folder, so that one that was stopped goes on with the next.

One JSON line that says under which settings and on which machine, then one a row, each on the disk before the next row
begins; a last line that was cut is dropped. A sweep goes on only with the very settings that its first rows had.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from edgevlm.bench.job import Prediction
from edgevlm.bench.reading import read_predictions
from edgevlm.bench.report import Environment, Part, Row, Settings
from edgevlm.errors import InputError

KEPT = "rows.jsonl"
#: What may differ: how the command was written, and how long a silence is suffered.
_FREE = {"command_line", "silence_s"}


class _Head(Part):
    settings: dict[str, Any]
    machine: dict[str, Any]


class _Line(Part):
    key: str
    row: Row


class KeptRows:
    """The rows of one sweep that worked."""

    def __init__(self, out: Path, settings: Settings, here: Environment) -> None:
        """Begin in `out`, or go on with what was stopped there.

        Raises:
            InputError: other settings or another machine than those of the rows that are there.
        """
        self._file = out / KEPT
        self._out = out
        self._rows: dict[str, Row] = {}
        self._head = _Head(
            settings=settings.model_dump(mode="json", exclude=_FREE),
            machine={
                "processor": here.cpu_model,
                "usable cores": here.usable_cores,
                "governor": here.governor,
                "power mode": here.power_mode,
                "edgevlm": here.edgevlm,
                **here.packages,
            },
        )
        out.mkdir(parents=True, exist_ok=True)
        length = self._read()
        if length:
            os.truncate(self._file, length)
        else:
            self._append(self._head, "wb")

    def _read(self) -> int:
        """Take the whole lines that are there; how many bytes they have, 0 where it is not a file of ours."""
        if not self._file.is_file():
            return 0
        lines = self._file.read_bytes().split(b"\n")[:-1]
        try:
            head = _Head.model_validate_json(lines[0])
        except (IndexError, ValidationError):
            return 0
        self._compare(head)
        length = len(lines[0]) + 1
        for line in lines[1:]:
            try:
                known = _Line.model_validate_json(line)
            except ValidationError:
                break
            self._rows[known.key] = known.row
            length += len(line) + 1
        return length

    def _compare(self, head: _Head) -> None:
        for then, now in ((head.settings, self._head.settings), (head.machine, self._head.machine)):
            for name in {**then, **now}:
                if then.get(name) != now.get(name):
                    what = f"a sweep was stopped here for which {name} was {then.get(name)}, not {now.get(name)}"
                    raise InputError(what, str(self._out), "add --restart, or choose another folder for -o")

    def find(self, key: str) -> tuple[Row, list[Prediction]] | None:
        """The row with that key and its answers; None where it has to be measured."""
        row = self._rows.get(key)
        if row is None or row.accuracy is None:
            return None if row is None else (row, [])
        answers = read_predictions(self._out / "report.json", row.accuracy)
        return None if isinstance(answers, str) else (row, answers)

    def add(self, key: str, row: Row) -> None:
        """Keep a row."""
        self._append(_Line(key=key, row=row), "ab")

    def _append(self, line: Part, mode: str) -> None:
        with self._file.open(mode) as stream:
            stream.write(json.dumps(line.model_dump(mode="json")).encode() + b"\n")
            stream.flush()
            os.fsync(stream.fileno())
