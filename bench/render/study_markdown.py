"""A study's report as Markdown: the findings, two pictures that lie beside it, and the tables."""

from __future__ import annotations

import shlex

from edgevlm.bench.render.markdown import bullets, escape, table, terms
from edgevlm.bench.render.study import facts, summary, task_line, title
from edgevlm.bench.render.study_findings import study_findings
from edgevlm.bench.render.study_table import ON_TOKENS, ON_TTFT, against_plain, grid, left_out, matrix
from edgevlm.bench.report import Report

#: The pictures' files, and what they show.
PICTURES = {
    "tokens.svg": "Accuracy against visual tokens",
    "ttft.svg": "Accuracy against time to first token",
}


def render_markdown(report: Report) -> str:
    """The whole report as Markdown."""
    machine = report.environment
    ran = f"{escape(machine.cpu_model)}, {escape(machine.system)}, {machine.started}. {summary(report)}."
    parts = [
        f"# {escape(title(report))}",
        ran,
        task_line(report),
        bullets(escape(str(finding)) for finding in study_findings(report)),
        *(f"![{shown}]({name})" for name, shown in PICTURES.items()),
    ]
    for heading, cells in (
        ("Accuracy by method and share of tokens", matrix(report)),
        ("Every cell", grid(report)),
        ("Against the plain choices", against_plain(report)),
        ("Cells without figures", left_out(report)),
    ):
        if cells.rows:
            parts += [f"## {heading}", table(cells)]
        if heading == "Every cell":
            parts.append(f"{ON_TOKENS} on the front of accuracy against tokens, {ON_TTFT} against time to first token.")
    parts += ["## Definitions", terms(report.definitions.items())]
    parts += ["## To repeat this", terms([("Command", shlex.join(report.settings.command_line)), *facts(report)])]
    return "\n\n".join(part for part in parts if part) + "\n"
