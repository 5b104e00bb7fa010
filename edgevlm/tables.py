"""The one table, and the one guard for foreign text on a terminal.

A table is rows of text, aligned; it fits the terminal, and is uncut where the output is a file or a pipe. Text from
strangers (names in a bundle, file names, error messages) passes through `printable`, so that it cannot steer the
terminal.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TextIO

_UNCUT_WIDTH = 10_000


def printable(text: str) -> str:
    """`text` on one line: runs of white space become one space, other control characters their escapes."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in " ".join(text.split())
    )


def print_table(
    headers: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    title: str = "",
    numeric: Sequence[str] = (),
    stream: TextIO | None = None,
) -> None:
    """Print a table.

    Args:
        headers: the column names.
        rows: one sequence of cells per row, as many as there are headers.
        title: a line above the table; empty for none.
        numeric: names of the columns that are aligned to the right.
        stream: where to print; standard output if None.

    Raises:
        ValueError: a row has another number of cells than there are headers.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    target = sys.stdout if stream is None else stream
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for header in headers:
        table.add_column(Text(header), justify="right" if header in numeric else "left", overflow="fold")
    for row in rows:
        if len(row) != len(headers):
            raise ValueError(f"a row has {len(row)} cells, the table {len(headers)} columns")
        table.add_row(*(Text(printable(cell)) for cell in row))
    console = Console(file=target, highlight=False) if target.isatty() else Console(file=target, width=_UNCUT_WIDTH)
    with console.capture() as capture:
        console.print(table)
    lines = [line.rstrip() for line in capture.get().splitlines()]
    target.write("\n".join([*([printable(title)] if title else []), *(line for line in lines if line)]) + "\n")
