"""A comparison on a terminal, as Markdown and as one HTML page; and its files."""

from __future__ import annotations

from pathlib import Path
from typing import TextIO

from markupsafe import Markup

from edgevlm.atomic import write_text
from edgevlm.bench.comparison import Comparison, Source
from edgevlm.bench.render.comparison_chart import LIMIT, forest, worsenings
from edgevlm.bench.render.comparison_table import details, differences, overview, rule, sentences
from edgevlm.bench.render.markdown import bullets, escape, table, terms
from edgevlm.bench.render.page import NARROW, WIDE, fill
from edgevlm.tables import print_table, printable

#: How it is decided, printed beside the numbers.
RULE = {
    "Regression": "the whole 95% interval of the worsening lies beyond the tolerance, or beyond the margin for "
    "accuracy; or a row that worked fails. Undecided: only a part of the interval does. Unchanged: none of it does, in "
    "either direction.",
    "Interval": "of the ratio of two medians, from the order-statistic interval of each (Zou and Donner 2008); 6 "
    "samples are needed. It knows how answers of one run differ, not how runs do: that is what the tolerance is for. "
    "Memory and size are one number a run, taken as exact.",
    "Accuracy": "new less old on the same items, bootstrap over images, where both reports have their answers beside "
    "them; else two independent samples (Newcombe 1998), which shows less.",
    "Not judged": "stages, which explain a change of TTFT, and energy, one number a run that a warmer day changes.",
}


def write_comparison(comparison: Comparison, out: Path) -> None:
    """Write comparison.json, comparison.md and comparison.html to `out`, each atomically.

    Raises:
        InputError: `out` cannot be written to.
    """
    write_text(out / "comparison.json", comparison.model_dump_json(indent=1) + "\n")
    write_text(out / "comparison.md", render_markdown(comparison))
    write_text(out / "comparison.html", render_html(comparison))


def print_comparison(comparison: Comparison, stream: TextIO) -> None:
    """Print the overview, then what it says."""
    cells = overview(comparison)
    rows = [[printable(str(cell)) for cell in row] for row in cells.rows]
    print_table(cells.headers, rows, numeric=cells.numeric, stream=stream)
    for line in sentences(comparison):
        stream.write(f"{printable(str(line))}\n")


def render_markdown(comparison: Comparison) -> str:
    """The whole comparison as Markdown."""
    parts = [
        "# EdgeVLM comparison",
        terms([("Old", _source(comparison.old)), ("New", _source(comparison.new)), ("Tolerance", rule(comparison))]),
        bullets(escape(str(sentence)) for sentence in sentences(comparison)),
        table(overview(comparison)),
        "## Every figure",
        table(details(comparison)),
    ]
    if comparison.differences:
        parts += ["## What else differs", table(differences(comparison))]
    parts += ["## How it is decided", terms(RULE.items())]
    return "\n\n".join(parts) + "\n"


def render_html(comparison: Comparison) -> str:
    """The whole comparison as an HTML page."""
    drawn = worsenings(comparison)
    return fill(
        "comparison.html.jinja",
        comparison=comparison,
        old=_source(comparison.old),
        new=_source(comparison.new),
        rule=rule(comparison),
        sentences=sentences(comparison),
        overview=overview(comparison),
        details=details(comparison),
        differences=differences(comparison),
        definitions=RULE,
        left_out=max(0, len(drawn) - LIMIT),
        forest=[Markup(forest(comparison, width)) for width in (WIDE, NARROW)] if drawn else [],
    )


def _source(source: Source) -> str:
    commit = f" (source {source.git_commit})" if source.git_commit else ""
    made = f"{source.started[:16].replace('T', ' ')} UTC, EdgeVLM {source.edgevlm}{commit}"
    return f"{source.path}, {made}, {source.cpu_model}"
