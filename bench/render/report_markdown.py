"""The report as Markdown: the same tables, readable as plain text. Text from bundles is escaped."""

from __future__ import annotations

from edgevlm.bench.render.accuracy_table import figures, first_tokens
from edgevlm.bench.render.energy_table import energy, heat
from edgevlm.bench.render.findings import findings
from edgevlm.bench.render.forecast_table import forecasts
from edgevlm.bench.render.markdown import bullets, escape, table, terms
from edgevlm.bench.render.protocol_table import memory, protocol, stages, throughput
from edgevlm.bench.render.reproduce import facts
from edgevlm.bench.render.table import by_type, comparison, latency, pairs
from edgevlm.bench.report import Report


def render_markdown(report: Report) -> str:
    """The whole report as Markdown."""
    machine = report.environment
    intro = f"{escape(machine.cpu_model)}, {escape(machine.system)}, {machine.started}."
    parts = [
        "# EdgeVLM benchmark",
        intro,
        table(comparison(report)),
        bullets(escape(str(finding)) for finding in findings(report)),
    ]
    for title, cells in (
        ("Latency", latency(report)),
        ("Throughput of the batch job", throughput(report)),
        ("Stages", stages(report)),
        ("How it was timed", protocol(report)),
        ("Memory", memory(report)),
        ("Forecast against measured", forecasts(report)),
        ("Accuracy against the baseline", pairs(report)),
        ("First answer token", first_tokens(report)),
        ("Figures of the benchmark", figures(report)),
        ("Accuracy by question type", by_type(report)),
        ("Energy", energy(report)),
        ("Heat and clocks", heat(report)),
    ):
        if cells.rows:
            parts += [f"## {title}", table(cells)]
    parts += ["## Definitions", terms(report.definitions.items())]
    parts += ["## To repeat this", terms(facts(report))]
    return "\n\n".join(part for part in parts if part) + "\n"
