"""MMBench (English, dev): VLMEvalKit's table. Circular: every option stands once at every letter, all must be right.

A table that holds the rotations (index + n x 1,000,000) is asked as it is; of one that does not, rotations are made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from edgevlm.bench.accuracy.items import Record, Skipped
from edgevlm.bench.accuracy.reading import BadRowError, Fields, Folder
from edgevlm.bench.accuracy.sets.base import LETTER, PLAIN, DataSet, groups, share
from edgevlm.bench.accuracy.sets.kit import LETTERS, read_table
from edgevlm.bench.job import Prediction
from edgevlm.bench.report import Figure

_TABLES = ("MMBench_DEV_EN.tsv", "MMBench_DEV_EN_V11.tsv")
_ROUND = 1_000_000


def _read(folder: Folder, split: str) -> list[Record | Skipped]:
    found = read_table(folder.file(*_TABLES), _finished)
    asked = [record for record in found if isinstance(record, Record)]
    if split == "vanilla":
        return [entry for entry in found if isinstance(entry, Skipped) or entry.id == entry.group]
    if any(record.id != record.group for record in asked):
        return found
    return [turned for entry in found for turned in ([entry] if isinstance(entry, Skipped) else rotations(entry))]


def _finished(record: Record, row: Fields) -> Record:
    if len(record.choices) < 2:
        raise BadRowError("it has fewer than two options")
    if not record.answers or record.answers[0] not in LETTERS[: len(record.choices)]:
        raise BadRowError("its answer is none of the options' letters")
    if not record.id.isdecimal():
        raise BadRowError("index is no number")
    group = str(row.get("g_index") or int(record.id) % _ROUND)
    return replace(record, group=group)


def rotations(record: Record) -> Iterator[Record]:
    """The record with its options moved on by 0, 1, 2 ... places; the right letter moves with them."""
    n = len(record.choices)
    right = LETTERS.index(record.answers[0])
    for shift in range(n):
        yield replace(
            record,
            id=record.id if shift == 0 else str(int(record.id) + shift * _ROUND),
            choices=tuple(record.choices[(place - shift) % n] for place in range(n)),
            answers=(LETTERS[(right + shift) % n],),
        )


def units(predictions: Sequence[Prediction]) -> list[Prediction]:
    """One answer a question, right only if it is right in all rotations."""
    return [
        members[0].model_copy(
            update={
                "id": group,
                "answer": " ".join(p.answer for p in members),
                "predicted": " | ".join(p.predicted for p in members),
                "parsed": " ".join(p.parsed or "-" for p in members),
                "token_ids": [token for p in members for token in p.token_ids],
                "correct": all(p.correct for p in members),
            }
        )
        for group, members in groups(predictions).items()
    ]


def figures(predictions: Sequence[Prediction], _scorer: str) -> list[Figure]:
    """How many of all answers are right, each rotation by itself."""
    right = sum(p.correct for p in predictions)
    return [Figure(name="accuracy of single rotations", value=share(right, len(predictions)))]


SET = DataSet(
    name="mmbench",
    title="MMBench dev (English)",
    files=(" or ".join(_TABLES),),
    splits=("circular", "vanilla"),
    scorers=("mmbench/exact",),
    templates={"llava": LETTER, "plain": PLAIN},
    max_tokens=16,
    read=_read,
    md5={_TABLES[0]: "b6caf1133a01c6bb705cf753bb527ed8", _TABLES[1]: "30c05be8f2f347a50be25aa067248184"},
    figures=figures,
    units=units,
    notes="without a judge: an answer without a clear option is wrong",
)
