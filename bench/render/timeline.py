"""Time per token over the run, with power, temperature and clock under it: whether heat slows a device down."""

from __future__ import annotations

from collections.abc import Sequence

from edgevlm.bench import format as show
from edgevlm.bench.metered import Series
from edgevlm.bench.render.axes import Axis
from edgevlm.bench.render.svg import Canvas, thinned, ticks
from edgevlm.bench.report import Row

_PANEL = 92.0
_GAP = 30.0
_LEFT = 58.0
_RIGHT = 14.0
#: Answers that are drawn of a row, evenly spaced.
_DOTS = 80
_QUANTITIES = {"W": "power", "°C": "temperature", "MHz": "clock"}


def has_timeline(row: Row) -> bool:
    """Whether it is known when the answers of a row began."""
    return row.latency is not None and any(sample.at_s is not None for sample in row.latency.steady)


def timeline(row: Row, width: float) -> str:
    """The picture of a timed row; a panel for each quantity that was read, all over the same seconds."""
    assert row.latency is not None
    samples = [row.latency.cold, *row.latency.warmup, *row.latency.steady]
    timed = [(each.at_s, each.tpot_ms) for each in samples if each.at_s is not None and each.tpot_ms is not None]
    lines = [line for unit in ("W", "°C", "MHz") if (line := _shown(row, unit)) is not None]
    spread = [at for at, _ in timed] + [at for line in lines for at in line.at_s]
    low, high = min(spread, default=0.0), max(spread, default=1.0)
    across = Axis(low, max(high, low + 1e-3), _LEFT, width - _RIGHT)
    panels = 1 + len(lines)
    read = [_QUANTITIES[line.unit] for line in lines]
    canvas = Canvas(width, panels * (_PANEL + _GAP) + 24, f"{', '.join(['Time per token', *read])} over the run")
    top = _GAP - 8
    up = _panel(canvas, top, width, "time per token, ms", [value for _, value in timed])
    for at, value in thinned(timed, _DOTS):
        canvas.circle(across.at(at), up.at(value), 3, "point", tip=show.milliseconds(value), data=value)
    for line in lines:
        top += _PANEL + _GAP
        up = _panel(canvas, top, width, f"{line.source} {line.name}, {line.unit}", line.values)
        points = [(across.at(at), up.at(value)) for at, value in zip(line.at_s, line.values, strict=True)]
        canvas.polyline(points, "own")
    for tick in ticks(low, high, 4 if width < 500 else 8):
        canvas.text(across.at(tick), top + _PANEL + 16, f"{tick:g}", "axis", "middle")
    canvas.text(_LEFT, top + _PANEL + 32, "seconds since the worker's start", "axis")
    return canvas.markup()


def _shown(row: Row, unit: str) -> Series | None:
    """The series of a unit that is drawn: the first power, the hottest zone, the first clock; a GPU's before others."""
    if row.heat is None:
        return None
    found = [each for each in row.heat.series if each.unit == unit]
    if unit == "°C":
        return next((each for each in found if f"{each.source} {each.name}" == row.heat.zone), None)
    if unit == "MHz":
        found.sort(key=lambda each: "gpu" not in each.name)
    return found[0] if found else None


def _panel(canvas: Canvas, top: float, width: float, title: str, values: Sequence[float]) -> Axis:
    """The frame of one quantity; its axis."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    pad = max(0.08 * (high - low), 0.02 * abs(high), 1e-3)
    up = Axis(low - pad, high + pad, top + _PANEL, top)
    canvas.text(_LEFT, top - 6, title, "axis")
    for tick in ticks(up.low, up.high, 3):
        canvas.line(_LEFT, up.at(tick), width - _RIGHT, up.at(tick), "grid")
        canvas.text(_LEFT - 7, up.at(tick) + 4, f"{tick:,g}", "axis", "end")
    canvas.line(_LEFT, top + _PANEL, width - _RIGHT, top + _PANEL, "tick")
    return up
