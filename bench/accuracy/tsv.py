"""A tab-separated table whose wide columns stay on disk: VLMEvalKit's files hold every picture as base64 text.

In: a TSV file with a header, cells quoted where they hold tabs or line ends. Out: its rows without the wide columns,
and any wide cell when it is asked for. Only the start of each row is remembered, so a file of gigabytes costs little.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from edgevlm.bench.accuracy.reading import MAX_PICTURE_BYTES, BadRowError
from edgevlm.errors import InputError

_MAX_COLUMNS = 200
#: A row that goes on for longer has an open quote.
_MAX_ROW_BYTES = 4 * MAX_PICTURE_BYTES


#: A wide cell no longer than this is kept: VLMEvalKit puts another row's index in place of a picture seen before.
SHORT = 64


@dataclass(frozen=True)
class Wide:
    """A cell that stays on disk.

    Attributes:
        row: the byte where its row begins.
        sha256: of the cell.
        parts: texts in it, where it spells a list; else 1.
        short: the cell itself, if it is short; else empty.
    """

    row: int
    sha256: str
    parts: int
    short: str


class Table:
    """An opened table.

    Attributes:
        columns: names in the header.
    """

    def __init__(self, path: Path, wide: tuple[str, ...] = ("image",)) -> None:
        """Read the header.

        Raises:
            InputError: there is none, or it is not UTF-8.
        """
        self._path = path
        self._wide = wide
        csv.field_size_limit(_MAX_ROW_BYTES)
        with path.open("rb") as file:
            header = next(_parse(file), None)
        if not isinstance(header, list) or not header or len(header) > _MAX_COLUMNS or len(set(header)) != len(header):
            raise InputError("the table has no usable header", str(path), "give the file as it was published")
        self.columns = [header[0].removeprefix("\ufeff"), *header[1:]]

    def rows(self) -> Iterator[tuple[str, dict[str, Any] | BadRowError]]:
        """Place and cells of each row; empty cells are left out, of wide ones there is a `Wide`."""
        with self._path.open("rb") as file:
            parsed = _parse(file)
            next(parsed)
            start = file.tell()
            for number, cells in enumerate(parsed, 1):
                place = f"row {number}"
                if isinstance(cells, BadRowError):
                    yield place, cells
                elif cells and len(cells) != len(self.columns):
                    yield place, BadRowError(f"it has {len(cells)} cells, the header {len(self.columns)}")
                elif cells:
                    named = zip(self.columns, cells, strict=True)
                    wide = self._wide
                    yield place, {name: _wide(cell, start) if name in wide else cell for name, cell in named if cell}
                start = file.tell()

    def cell(self, row: int, column: str) -> str:
        """One cell of the row that begins at byte `row`.

        Raises:
            InputError: the file changed meanwhile.
        """
        with self._path.open("rb") as file:
            file.seek(row)
            cells = next(_parse(file), None)
        if not isinstance(cells, list) or len(cells) != len(self.columns):
            raise InputError("the table changed while it was read", str(self._path), "start again")
        return cells[self.columns.index(column)]


def _wide(cell: str, row: int) -> Wide:
    parts = cell.count("'") // 2 if cell.startswith("[") else 1
    digest = hashlib.sha256(cell.encode("utf-8", "replace")).hexdigest()
    return Wide(row, digest, parts, cell if len(cell) <= SHORT else "")


def _parse(file: BinaryIO) -> Iterator[list[str] | BadRowError]:
    """Rows from where `file` stands; after each, `file` stands at the start of the next."""
    while True:
        size = 0
        failure = ""

        def lines() -> Iterator[str]:
            nonlocal size, failure
            while line := file.readline(_MAX_ROW_BYTES + 1):
                size += len(line)
                if size > _MAX_ROW_BYTES:
                    failure = "it is too long"
                    return
                try:
                    yield line.decode("utf-8")
                except UnicodeDecodeError:
                    failure = "it is not UTF-8"
                    yield line.decode("utf-8", "replace")

        try:
            cells = next(csv.reader(lines(), delimiter="\t"), None)
        except csv.Error:
            cells, failure = [], "it is not a row of a table"
        if cells is None and not failure:
            return
        yield BadRowError(failure) if failure else cells or []
