"""Markdown that reads well as plain text; foreign text has no meaning in it."""

from __future__ import annotations

import re
from collections.abc import Iterable

from edgevlm.bench.render.table import Table
from edgevlm.tables import printable

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>|#~&!])")


def escape(text: str) -> str:
    """`text` on one line, without meaning to Markdown or HTML."""
    return _SPECIAL.sub(r"\\\1", printable(text))


def table(cells: Table) -> str:
    """A table, numbers to the right."""
    rule = ["---:" if header in cells.numeric else "---" for header in cells.headers]
    lines = [[escape(header) for header in cells.headers], rule]
    lines += [[escape(str(cell)) for cell in row] for row in cells.rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def terms(pairs: Iterable[tuple[str, str]]) -> str:
    """A list of terms and what they mean."""
    return bullets(f"**{escape(term)}**: {escape(text)}" for term, text in pairs)


def bullets(lines: Iterable[str]) -> str:
    """A list of lines that are Markdown already."""
    return "\n".join(f"- {line}" for line in lines)
