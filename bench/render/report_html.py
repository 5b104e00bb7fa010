"""The report as one HTML page that needs nothing else: inline SVG and one script that sorts tables, no
font, no network, all text escaped; it says the same without the script."""

from __future__ import annotations

import shlex

from markupsafe import Markup

from edgevlm.bench import format as show
from edgevlm.bench.pairs import Proportion
from edgevlm.bench.render.accuracy_table import figures, first_tokens
from edgevlm.bench.render.card import card
from edgevlm.bench.render.charts import share_bar, ttft_bars
from edgevlm.bench.render.distribution import ridges
from edgevlm.bench.render.energy_table import energy, heat
from edgevlm.bench.render.findings import findings
from edgevlm.bench.render.forecast_table import forecasts
from edgevlm.bench.render.page import both, fill
from edgevlm.bench.render.protocol_table import memory, protocol, stages, throughput
from edgevlm.bench.render.reproduce import facts
from edgevlm.bench.render.scatter import Cost, accuracy_scatter, has_points
from edgevlm.bench.render.table import comparison, latency, pairs
from edgevlm.bench.render.timeline import has_timeline, timeline
from edgevlm.bench.report import Report, Row

_SCATTERS: tuple[tuple[str, Cost], ...] = (
    ("Accuracy against time to first token", "ttft"),
    ("Accuracy against size", "size"),
)
#: Rows whose answers are drawn over time; those that were throttled come first.
_TIMELINES = 12


def render_html(report: Report) -> str:
    """The whole report as an HTML page."""
    timed = any(row.latency is not None for row in report.rows)
    scored = [row for row in report.rows if row.accuracy is not None]
    seen = [row for row in report.rows if has_timeline(row)]
    seen.sort(key=lambda row: not (row.heat and row.heat.throttled))
    return fill(
        "report.html.jinja",
        report=report,
        summary=_summary(report),
        task_line=_task_line(report),
        findings=findings(report),
        comparison=comparison(report),
        latency=latency(report),
        throughput=throughput(report),
        stages=stages(report),
        protocol=protocol(report),
        memory=memory(report),
        pairs=pairs(report),
        more_accuracy=(("First answer token", first_tokens(report)), ("Figures of the benchmark", figures(report))),
        scored=scored,
        card=card(report),
        bars=both(lambda width: ttft_bars(report, width)) if timed else (),
        ridges_ttft=both(lambda width: ridges(report, "ttft", width)) if timed else (),
        ridges_gaps=both(lambda width: ridges(report, "gaps", width)) if timed else (),
        scatters=[(title, _scatter(report, cost)) for title, cost in _SCATTERS if has_points(report, cost)],
        forecasts=forecasts(report),
        energy=energy(report),
        heat=heat(report),
        timelines=[(row.name, _timeline(row)) for row in seen[:_TIMELINES]],
        timelines_left=max(0, len(seen) - _TIMELINES),
        share_bar=_share_bar,
        facts=facts(report)[1:],
        command=shlex.join(report.settings.command_line),
        percent=show.percent,
        interval_of=show.interval_of,
        megabytes=show.megabytes,
        bits=show.bits,
    )


def _scatter(report: Report, cost: Cost) -> tuple[Markup, Markup]:
    return both(lambda width: accuracy_scatter(report, cost, width))


def _timeline(row: Row) -> tuple[Markup, Markup]:
    return both(lambda width: timeline(row, width))


def _share_bar(share: Proportion, chance: float) -> Markup:
    return Markup(share_bar(share, chance))


def _summary(report: Report) -> str:
    """How many bundles were measured, in how many rows where that is more, and how many rows failed."""
    rows = [row for row in report.rows if row.kind == "bundle"]
    bundles = len({row.path for row in rows})
    failed = sum(row.status == "failed" for row in rows)
    text = f"{bundles} bundle{'s' * (bundles != 1)}"
    if len(rows) > bundles:
        text += f" in {len(rows)} rows"
    return f"{text}, {failed} failed" if failed else text


def _task_line(report: Report) -> str:
    scored = [row.accuracy for row in report.rows if row.accuracy is not None]
    if not scored:
        return ""
    first = scored[0]
    asked = f"{first.n} questions about {first.images} images"
    return f"Task {first.task}, split {first.split or report.settings.split}: {asked}; {first.scorer}."
