"""A study's report as one HTML page, its pictures as files, and the end of a run on a terminal."""

from __future__ import annotations

import shlex
from typing import TextIO

from markupsafe import Markup

from edgevlm.bench.grid import by_method, share, study_of, ttft
from edgevlm.bench.render.page import WIDE, both, fill, read
from edgevlm.bench.render.reproduce import engines, setting
from edgevlm.bench.render.study_charts import Cost, front_chart, method_panel
from edgevlm.bench.render.study_findings import study_findings
from edgevlm.bench.render.study_table import ON_TOKENS, ON_TTFT, against_plain, grid, left_out, matrix
from edgevlm.bench.report import Report
from edgevlm.tables import print_table, printable

_PANEL = 220.0


def render_html(report: Report) -> str:
    """The whole report as an HTML page."""
    scored = [row for row in report.rows if share(row) is not None]
    timed = [row for row in scored if ttft(report.rows, row) is not None]
    methods = {name: rows for name, rows in by_method(report).items() if any(row in scored for row in rows)}
    return fill(
        "study.html.jinja",
        report=report,
        title=title(report),
        summary=summary(report),
        task_line=task_line(report),
        findings=study_findings(report),
        by_tokens=both(lambda width: front_chart(report, "tokens", width)) if scored else (),
        by_ttft=both(lambda width: front_chart(report, "ttft", width)) if timed else (),
        panels=[(name, Markup(method_panel(report, name, _PANEL))) for name in methods],
        matrix=matrix(report),
        grid=grid(report),
        against=against_plain(report),
        left_out=left_out(report),
        facts=facts(report),
        command=shlex.join(report.settings.command_line),
        join=shlex.join,
    )


def title(report: Report) -> str:
    """What was studied."""
    return f"Pruning visual tokens of {study_of(report).model}"


def summary(report: Report) -> str:
    """How many cells there are, and how many of them have no figures."""
    cells = [row for row in report.rows if row.pruning is not None]
    counts = {status: sum(row.status == status for row in cells) for status in ("ok", "skipped", "failed")}
    parts = [f"{len(by_method(report))} methods, {len(cells)} cells"]
    parts += [f"{counts['skipped']} not made"] if counts["skipped"] else []
    parts += [f"{counts['failed']} failed"] if counts["failed"] else []
    return ", ".join(parts)


def task_line(report: Report) -> str:
    """What was asked, and of how many tokens."""
    asked = next((row.accuracy for row in report.rows if row.accuracy is not None), None)
    if asked is None:
        return ""
    items = f"{asked.n} questions about {asked.images} images of {asked.task}, split {report.settings.split}"
    return f"{items}; unpruned, an image is {study_of(report).image_tokens} tokens."


def facts(report: Report) -> list[tuple[str, str]]:
    """What is needed to repeat the study; engines are the same for all cells."""
    return [*setting(report), *(pair for row in report.rows[:1] for pair in engines(row))]


def picture(report: Report, cost: Cost) -> str:
    """One of the two pictures as an SVG file that stands alone."""
    return standalone(front_chart(report, cost, WIDE))


def standalone(drawing: str) -> str:
    """An `<svg>` element with the page's colours in it, as a file of its own."""
    style = (
        read("picture.css.jinja")
        + 'svg { font-family: system-ui, "DejaVu Sans", sans-serif; background: var(--page); }\n'
    )
    head, tag, rest = drawing.partition(">")
    return f"{head}{tag}<style>{style}</style>{rest}\n"


def print_study(report: Report, stream: TextIO) -> None:
    """Print every cell that was measured, then the findings and what was left out."""
    table = grid(report)
    rows = [[str(cell) for cell in row] for row in table.rows]
    note = f"{ON_TOKENS} on the front of accuracy against tokens, {ON_TTFT} against TTFT"
    print_table(table.headers, rows, numeric=table.numeric, stream=stream)
    stream.write(f"{note}\n")
    for line in study_findings(report):
        stream.write(f"{printable(str(line))}\n")
    for cells in left_out(report).rows:
        name, _, status, reason = map(str, cells)
        stream.write(f"{printable(f'{name}: {status}: {reason}')}\n")
