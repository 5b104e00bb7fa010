"""The report as one HTML page that needs nothing else: inline SVG and one script that sorts tables, no
font, no network, all text escaped; it says the same without the script."""

from __future__ import annotations

import shlex

from markupsafe import Markup

from edgevlm.bench import format as show
from edgevlm.bench.charts import accuracy_scatter, share_bar, ttft_bars
from edgevlm.bench.energy_table import energy, heat
from edgevlm.bench.findings import findings
from edgevlm.bench.page import NARROW, WIDE, fill
from edgevlm.bench.pairs import Proportion
from edgevlm.bench.report import Report
from edgevlm.bench.reproduce import facts
from edgevlm.bench.table import comparison, latency, pairs
from edgevlm.bench.timeline import timeline


def render_html(report: Report) -> str:
    """The whole report as an HTML page."""
    timed = any(row.latency is not None for row in report.rows)
    scored = [row for row in report.rows if row.accuracy is not None]
    return fill(
        "report.html.jinja",
        report=report,
        summary=_summary(report),
        task_line=_task_line(report),
        findings=findings(report),
        comparison=comparison(report),
        latency=latency(report),
        pairs=pairs(report),
        scored=scored,
        bars_wide=Markup(ttft_bars(report, WIDE)) if timed else "",
        bars_narrow=Markup(ttft_bars(report, NARROW)) if timed else "",
        scatter_wide=Markup(accuracy_scatter(report, WIDE)) if scored else "",
        scatter_narrow=Markup(accuracy_scatter(report, NARROW)) if scored else "",
        energy=energy(report),
        heat=heat(report),
        timelines=[
            (row.name, Markup(timeline(row, WIDE)), Markup(timeline(row, NARROW)))
            for row in report.rows
            if row.heat is not None and row.latency is not None
        ],
        share_bar=_share_bar,
        facts=facts(report)[1:],
        command=shlex.join(report.settings.command_line),
        percent=show.percent,
        interval_of=show.interval_of,
        megabytes=show.megabytes,
        bits=show.bits,
    )


def _share_bar(share: Proportion, chance: float) -> Markup:
    return Markup(share_bar(share, chance))


def _summary(report: Report) -> str:
    """How many were measured, and how many failed."""
    bundles = [row for row in report.rows if row.kind == "bundle"]
    failed = sum(row.status == "failed" for row in bundles)
    text = f"{len(bundles)} bundle{'s' * (len(bundles) != 1)}"
    return f"{text}, {failed} failed" if failed else text


def _task_line(report: Report) -> str:
    scored = [row.accuracy for row in report.rows if row.accuracy is not None]
    if not scored:
        return ""
    first = scored[0]
    asked = f"{first.n} questions about {first.images} images"
    return f"Task {first.task}, split {report.settings.split}: {asked}; {first.scorer}."
