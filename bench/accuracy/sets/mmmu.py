"""MMMU validation: a JSON line a question, as in the published parquet files, and pictures; or VLMEvalKit's table.

Parquet needs a library that devices do not have, so the files are converted once: docs/accuracy.md has the five lines.
`options` may be the text of a Python list, as published; literals are read, nothing is evaluated.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from edgevlm.bench.accuracy.items import Record, Skipped
from edgevlm.bench.accuracy.reading import BadRowError, Fields, Folder, read_lines, records, text, texts
from edgevlm.bench.accuracy.sets.base import LETTER, PLAIN, DataSet, Submission
from edgevlm.bench.accuracy.sets.kit import LETTERS, read_table
from edgevlm.bench.job import Prediction
from edgevlm.errors import InputError

_LINES, _TABLE = "mmmu_val.jsonl", "MMMU_DEV_VAL.tsv"
_PICTURES = tuple(f"image_{number}" for number in range(1, 8))


def _read(folder: Folder, _split: str) -> list[Record | Skipped]:
    table = folder.find(_TABLE)
    if table is not None:
        return read_table(table, lambda record, row: record if row.get("split", "validation") == "validation" else None)
    if folder.find(_LINES) is None and next(folder.root.rglob("*.parquet"), None) is not None:
        raise InputError(
            "parquet files are not read here", str(folder.root), f"convert them to {_LINES}: see docs/accuracy.md"
        )

    def make(row: Fields) -> Record:
        choices = texts(row, "options") if row.get("question_type", "multiple-choice") == "multiple-choice" else ()
        answers = texts(row, "answer")
        if not answers or (choices and answers[0] not in LETTERS[: len(choices)]):
            raise BadRowError("answer is none of the options' letters")
        names = [text(row, name) for name in _PICTURES if row.get(name) is not None]
        if not names:
            raise BadRowError("it has no picture")
        key = text(row, "id")
        return Record(
            id=key,
            image_id=names[0],
            question=text(row, "question"),
            answers=answers,
            pictures=tuple(folder.picture(name, ".", "images") for name in names),
            type=key.removeprefix("validation_").rsplit("_", 1)[0],
            choices=choices,
        )

    return records(read_lines(folder.file(_LINES)), make)


def submission(predictions: Sequence[Prediction]) -> str:
    """The answer file of the official script: id to what was read, or said."""
    return json.dumps({p.id: p.parsed or p.predicted for p in predictions}, ensure_ascii=False)


SET = DataSet(
    name="mmmu",
    title="MMMU val",
    files=(f"{_LINES} and the pictures it names, or {_TABLE}",),
    splits=("val",),
    scorers=("mmmu/official", "mmmu/lmms-eval", "mmmu/strict"),
    templates={"llava": LETTER, "plain": PLAIN},
    max_tokens=32,
    read=_read,
    counts={"val": 900},
    md5={_TABLE: "585e8ad75e73f75dcad265dfd0417d64"},
    submission=Submission("mmmu_answers.json", submission),
    notes="questions with several pictures are skipped by models that take one",
)
