"""What a worker answered so far, on disk as it arrives, so that a sweep that was killed goes on where it stopped.

One JSON line a message behind a first line that says whose answers they are: other weights, items or engines make other
answers, and a journal of those is set aside. A last line that was cut is dropped.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from pydantic import ValidationError

from edgevlm.bench.job import MESSAGES, Answered, Missed, Prediction
from edgevlm.bench.report import SkippedItem


@dataclass
class Answers:
    """What is known of a row's items, in the order in which they were asked."""

    predictions: list[Prediction] = field(default_factory=list)
    skipped: list[SkippedItem] = field(default_factory=list)
    control: list[Prediction] = field(default_factory=list)
    skipped_control: list[SkippedItem] = field(default_factory=list)

    def add(self, message: Answered | Missed) -> None:
        """Take one message of a worker."""
        if isinstance(message, Answered):
            (self.control if message.control else self.predictions).append(message.prediction)
        else:
            (self.skipped_control if message.control else self.skipped).append(message.item)

    @property
    def asked(self) -> int:
        """Items answered or skipped."""
        return len(self.predictions) + len(self.skipped)

    @property
    def asked_control(self) -> int:
        """The same of the control."""
        return len(self.control) + len(self.skipped_control)


class Journal:
    """An open journal; each message is on its way to the disk before the next item is asked."""

    def __init__(self, path: Path, key: str) -> None:
        """Open the journal of `key` at `path`, or begin it; one that is somebody else's is replaced.

        Attributes:
            known: what it holds.
        """
        self.known, length = _read(path, key)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: IO[bytes] = path.open("r+b" if length else "wb")
        self._file.seek(length)
        self._file.truncate()
        if not length:
            self._file.write(_head(key))
            self._file.flush()

    def write(self, message: Answered | Missed) -> None:
        """Append one message."""
        self._file.write(to_line(message))
        self._file.flush()

    def close(self) -> None:
        """Close the file; it stays."""
        self._file.close()


def read_journal(path: Path, key: str) -> Answers:
    """The answers of `key` in `path`; none where there is no such file, or it is somebody else's."""
    return _read(path, key)[0]


def to_text(answers: Answers, key: str) -> str:
    """The whole journal of `answers`."""
    messages: list[Answered | Missed] = [
        *(Answered(control=False, prediction=prediction) for prediction in answers.predictions),
        *(Missed(control=False, item=item) for item in answers.skipped),
    ]
    return (_head(key) + b"".join(map(to_line, messages))).decode()


def to_line(message: Answered | Missed) -> bytes:
    """One message; what has its default is left out."""
    fields = {"kind": message.kind, **message.model_dump(mode="json", exclude_defaults=True)}
    return json.dumps(fields, ensure_ascii=False).encode() + b"\n"


def _read(path: Path, key: str) -> tuple[Answers, int]:
    """The answers, and how many bytes of the file hold them."""
    answers = Answers()
    try:
        content = path.read_bytes()
    except OSError:
        return answers, 0
    if not content.startswith(_head(key)):
        return answers, 0
    length = len(_head(key))
    for line in content[length:].split(b"\n")[:-1]:
        try:
            message = MESSAGES.validate_json(line)
        except ValidationError:
            break
        if not isinstance(message, Answered | Missed):
            break
        answers.add(message)
        length += len(line) + 1
    return answers, length


def _head(key: str) -> bytes:
    return json.dumps({"answers_of": key}).encode() + b"\n"
