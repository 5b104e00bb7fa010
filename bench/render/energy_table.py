"""The tables of energy and of heat, which console, Markdown and HTML lay out each in their way."""

from __future__ import annotations

from edgevlm.bench import format as show
from edgevlm.bench.metered import Heat, Joules
from edgevlm.bench.render.table import Cell, Table
from edgevlm.bench.report import Report


def energy(report: Report) -> Table:
    """One line for each row and meter."""
    headers = ("bundle", "sensor", "rate", "idle", "mean", "per answer", "per image", "per token", "answers")
    rows = tuple(
        (
            Cell(row.name),
            Cell(f"{meter.source} {' + '.join(meter.rails)}", meter.covers),
            Cell(f"{show.three_digits(meter.rate_hz)} Hz", meter.method),
            Cell(_watts(meter.idle_w)),
            Cell(_watts(meter.mean_w)),
            *(_joules(value) for value in (meter.per_answer, meter.per_image, meter.per_token)),
            Cell(str(meter.answers), f"{show.three_digits(meter.seconds)} s"),
        )
        for row in report.rows
        for meter in (row.energy.meters if row.energy else [])
    )
    return Table(headers, rows, headers[2:])


def heat(report: Report) -> Table:
    """One line for each row whose temperatures or clocks were read."""
    headers = ("bundle", "at first", "hottest", "clocks", "throttled")
    rows = tuple(
        (
            Cell(row.name),
            Cell(_celsius(row.heat.start_c)),
            Cell(_celsius(row.heat.max_c), row.heat.zone),
            Cell(_clocks(row.heat)),
            _throttled(row.heat),
        )
        for row in report.rows
        if row.heat is not None
    )
    return Table(headers, rows, headers[1:3])


def _watts(value: float | None) -> str:
    return show.NONE if value is None else f"{show.three_digits(value)} W"


def _celsius(value: float | None) -> str:
    return show.NONE if value is None else f"{value:.1f} °C"


def _joules(value: Joules | None) -> Cell:
    if value is None:
        return Cell("n/a", tone="quiet")
    return Cell(show.joules(value.gross), "" if value.net is None else f"net {show.joules(value.net)}")


def _clocks(seen: Heat) -> str:
    """Medians, and minima where they are lower."""
    return "; ".join(
        f"{clock.name} {clock.median_mhz:,.0f} MHz"
        + (f", lowest {clock.min_mhz:,.0f}" if clock.min_mhz < clock.median_mhz else "")
        for clock in seen.clocks
    )


def _throttled(seen: Heat) -> Cell:
    if not seen.throttled:
        return Cell("not seen")
    return Cell("; ".join(f"{each.reason} {each.share:.0%}" for each in seen.throttled), tone="bad")
