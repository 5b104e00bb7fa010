"""The report as Markdown: the same tables, readable as plain text. Text from bundles is escaped."""

from __future__ import annotations

import re
from collections.abc import Iterable

from edgevlm.bench.findings import findings
from edgevlm.bench.report import Report
from edgevlm.bench.reproduce import facts
from edgevlm.bench.table import Table, by_type, comparison, latency, pairs
from edgevlm.tables import printable

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>|#~&!])")


def render_markdown(report: Report) -> str:
    """The whole report as Markdown."""
    machine = report.environment
    intro = f"{escape(machine.cpu_model)}, {escape(machine.system)}, {machine.started}."
    parts = [
        "# EdgeVLM benchmark",
        intro,
        _table(comparison(report)),
        _bullets(escape(str(finding)) for finding in findings(report)),
    ]
    for title, table in (
        ("Latency", latency(report)),
        ("Accuracy against the baseline", pairs(report)),
        ("Accuracy by question type", by_type(report)),
    ):
        if table.rows:
            parts += [f"## {title}", _table(table)]
    parts += ["## Definitions", _terms(report.definitions.items())]
    parts += ["## To repeat this", _terms(facts(report))]
    return "\n\n".join(part for part in parts if part) + "\n"


def escape(text: str) -> str:
    """`text` on one line, without meaning to Markdown or HTML."""
    return _SPECIAL.sub(r"\\\1", printable(text))


def _table(table: Table) -> str:
    rule = ["---:" if header in table.numeric else "---" for header in table.headers]
    lines = [[escape(header) for header in table.headers], rule]
    lines += [[escape(str(cell)) for cell in row] for row in table.rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _terms(pairs: Iterable[tuple[str, str]]) -> str:
    return _bullets(f"**{escape(term)}**: {escape(text)}" for term, text in pairs)


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
