"""VLMEvalKit's TSV files, which hold most benchmarks in one layout: a row a question, its picture as base64 text.

Columns: index, image, question, answer, and where they apply A, B, C ..., hint, category, split, image_path. A picture
that was there before is the index of that row instead (64 characters at most).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from edgevlm.bench.accuracy.items import Picture, Record, Skipped
from edgevlm.bench.accuracy.reading import BadRowError, Fields, from_base64, records, text, texts
from edgevlm.bench.accuracy.tsv import Table, Wide
from edgevlm.errors import InputError

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_QUOTED = re.compile(r"'([^']*)'")


def choices_of(row: Fields) -> tuple[str, ...]:
    """Options A, B, C ... up to the first that is not there."""
    found = []
    for letter in LETTERS:
        if row.get(letter) in (None, "", "nan"):
            break
        found.append(text(row, letter))
    return tuple(found)


def read_table(path: Path, finish: Callable[[Record, Fields], Record | None] | None = None) -> list[Record | Skipped]:
    """Records of a VLMEvalKit file.

    Args:
        path: the TSV file.
        finish: changes a record by its row, or leaves it out with None.

    Raises:
        InputError: the file is no such table.
    """
    table = Table(path)
    for column in ("index", "image", "question"):
        if column not in table.columns:
            raise InputError(f"the table has no column {column}", str(path), "give the file as it was published")
    cells: dict[str, Wide] = {}

    def pictures(cell: Wide) -> tuple[Picture, ...]:
        def part(number: int) -> str:
            whole = table.cell(cell.row, "image")
            return _QUOTED.findall(whole)[number] if whole.startswith("[") else whole

        def reader(number: int) -> Callable[[], str]:
            return lambda: part(number)

        return tuple(from_base64(f"{path.name} {cell.sha256[:12]}", reader(number)) for number in range(cell.parts))

    def make(row: Fields) -> Record | None:
        index = text(row, "index")
        cell = row.get("image")
        if not isinstance(cell, Wide):
            raise BadRowError("image is missing")
        if cell.short and cell.short != index:
            if cell.short not in cells:
                raise BadRowError(f"its picture is that of row {cell.short}, which is not above it")
            cell = cells[cell.short]
        cells[index] = cell
        record = Record(
            id=index,
            image_id=cell.sha256[:16],
            question=text(row, "question"),
            answers=texts(row, "answer") if row.get("answer") else (),
            pictures=pictures(cell),
            type=str(row.get("category") or "all"),
            choices=choices_of(row),
            hint="" if row.get("hint") in (None, "nan") else text(row, "hint"),
        )
        return record if finish is None else finish(record, row)

    return records(table.rows(), make)
