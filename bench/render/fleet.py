"""A fleet on a terminal, as Markdown and as one HTML page; and its files."""

from __future__ import annotations

from pathlib import Path
from typing import TextIO

from edgevlm.atomic import write_text
from edgevlm.bench.fleet import Fleet, as_report, side_by_side
from edgevlm.bench.render.card import card
from edgevlm.bench.render.charts import ttft_bars
from edgevlm.bench.render.distribution import ridges
from edgevlm.bench.render.findings import Finding, findings
from edgevlm.bench.render.fleet_chart import decode_bars
from edgevlm.bench.render.markdown import bullets, escape, table, terms
from edgevlm.bench.render.page import both, fill
from edgevlm.bench.render.reproduce import setting
from edgevlm.bench.render.scatter import accuracy_scatter, has_points
from edgevlm.bench.render.table import Cell, Table, comparison
from edgevlm.tables import print_table, printable


def write_fleet(fleet: Fleet, out: Path) -> None:
    """Write fleet.json, fleet.md and fleet.html to `out`, each atomically.

    Raises:
        InputError: `out` cannot be written to.
    """
    write_text(out / "fleet.json", fleet.model_dump_json(indent=1) + "\n")
    write_text(out / "fleet.md", render_markdown(fleet))
    write_text(out / "fleet.html", render_html(fleet))


def overview(fleet: Fleet) -> Table:
    """The comparison of all rows with a column for the device."""
    cells = comparison(as_report(fleet))
    rows = [
        (Cell(row.name), Cell(device.name), *line[1:])
        for (device, row), line in zip(side_by_side(fleet), cells.rows, strict=True)
    ]
    return Table((cells.headers[0], "device", *cells.headers[1:]), tuple(rows), cells.numeric)


def print_fleet(fleet: Fleet, stream: TextIO) -> None:
    """Print the comparison."""
    cells = overview(fleet)
    rows = [[printable(str(cell)) for cell in row] for row in cells.rows]
    print_table(cells.headers, rows, numeric=cells.numeric, stream=stream)


def render_markdown(fleet: Fleet) -> str:
    """The whole fleet as Markdown."""
    parts = ["# EdgeVLM fleet", table(overview(fleet))]
    if said := _findings(fleet):
        parts.append(bullets(escape(str(finding)) for finding in said))
    for device in fleet.devices:
        parts += [f"## {escape(device.name)}", terms([*card(device.report), ("Report", f"sha256 {device.sha256}")])]
    parts += ["## Definitions", terms(_definitions(fleet).items())]
    return "\n\n".join(parts) + "\n"


def render_html(fleet: Fleet) -> str:
    """The whole fleet as an HTML page."""
    rows = as_report(fleet)
    timed = any(row.latency is not None for row in rows.rows)
    scattered = has_points(rows, "ttft")
    return fill(
        "fleet.html.jinja",
        devices=[
            (device.name, card(device.report), [*setting(device.report), ("Report", f"sha256 {device.sha256}")])
            for device in fleet.devices
        ],
        overview=overview(fleet),
        findings=_findings(fleet),
        definitions=_definitions(fleet),
        bars=both(lambda width: ttft_bars(rows, width)) if timed else (),
        decode=both(lambda width: decode_bars(fleet, width)) if timed else (),
        ridges=both(lambda width: ridges(rows, "ttft", width)) if timed else (),
        scatter=both(lambda width: accuracy_scatter(rows, "ttft", width)) if scattered else (),
    )


def _findings(fleet: Fleet) -> list[Finding]:
    """What each report says, with its device."""
    return [
        Finding(f"{device.name}, {found.name}", found.text, found.tone)
        for device in fleet.devices
        for found in findings(device.report)
    ]


def _definitions(fleet: Fleet) -> dict[str, str]:
    """Of all reports; where they differ, as the first has it."""
    found: dict[str, str] = {}
    for device in fleet.devices:
        found = {**device.report.definitions, **found}
    return found
