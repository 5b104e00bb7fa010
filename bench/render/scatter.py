"""Accuracy against what it costs, time or size, with the Pareto front: what one gets for how much."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from edgevlm.bench import format as show
from edgevlm.bench.pareto import front
from edgevlm.bench.render.axes import cost_axis, share_axis
from edgevlm.bench.render.labels import Label, write_labels
from edgevlm.bench.render.svg import Canvas, shortened, ticks
from edgevlm.bench.report import Report, Row

Cost: TypeAlias = Literal["ttft", "size"]
_SMALL = 11.5
#: Beyond so many points only those of the front have their names.
_NAMED = 24


@dataclass(frozen=True)
class _Scale:
    """What stands on the horizontal axis: its title, a row's value, and how a value is written."""

    title: str
    short: str
    value: Callable[[Row], float | None]
    write: Callable[[float], str]


_SCALES: dict[Cost, _Scale] = {
    "ttft": _Scale(
        "median time to first token (steady), ms",
        "median time to first token",
        lambda row: row.latency.ttft_steady_ms.median if row.latency is not None else None,
        show.milliseconds,
    ),
    "size": _Scale(
        "size of all files, MB",
        "size",
        lambda row: row.total_bytes / 1e6 if row.total_bytes else None,
        lambda value: show.megabytes(round(value * 1e6)),
    ),
}


@dataclass(frozen=True)
class _Point:
    """A row, its cost, and where it stands with its interval."""

    row: Row
    cost: float
    share: float
    x: float
    y: float
    low: float
    high: float


def has_points(report: Report, cost: Cost) -> bool:
    """Whether any row has both accuracy and this cost."""
    return any(row.accuracy is not None and _SCALES[cost].value(row) is not None for row in report.rows)


def accuracy_scatter(report: Report, cost: Cost, width: float) -> str:
    """Accuracy with its 95% interval against the cost, the front as a stair; a row without a cost is a line across."""
    left, right, top, bottom = 48.0, 18.0, 14.0, 46.0
    height = 330.0 if width < 500 else 380.0
    scale = _SCALES[cost]
    canvas = Canvas(width, height, f"Accuracy with 95% interval against {scale.short}, with the Pareto front")
    scored = [(row, row.accuracy.overall) for row in report.rows if row.accuracy is not None]
    costs = [value for row, _ in scored if (value := scale.value(row)) is not None]
    across = cost_axis(costs, left, width - right)
    up = share_axis([share for _, share in scored], height - bottom, top)
    for tick in ticks(up.low * 100, up.high * 100, 6):
        y = up.at(tick / 100)
        canvas.line(left, y, width - right, y, "grid")
        canvas.text(left - 7, y + 4, f"{tick:g}%", "axis", "end")
    for tick in across.ticks(4 if width < 500 else 8):
        canvas.line(across.at(tick), height - bottom, across.at(tick), height - bottom + 4, "tick")
        canvas.text(across.at(tick), height - bottom + 18, f"{tick:,g}", "axis", "middle")
    logarithmic = ", logarithmic" if across.logarithmic else ""
    canvas.text(left, height - 8, f"{scale.title}{logarithmic}", "axis")
    canvas.line(left, height - bottom, width - right, height - bottom, "tick")
    points = []
    for row, share in scored:
        if share.value is None or share.low is None or share.high is None:
            continue
        value = scale.value(row)
        if value is None:
            canvas.line(left, up.at(share.value), width - right, up.at(share.value), "baseline")
            text = shortened(f"{row.name} {show.percent(share.value)}", _SMALL, width - left - right)
            canvas.text(left + 4, up.at(share.value) - 5, text, "axis halo")
            continue
        places = (up.at(share.value), up.at(share.low), up.at(share.high))
        points.append(_Point(row, value, share.value, across.at(value), *places))
    best = [points[index] for index in front([(point.cost, point.share) for point in points])]
    _stair(canvas, best, width - right)
    for point in points:
        _whisker(canvas, point, scale, point in best, capped=len(points) <= _NAMED)
    named = points if len(points) <= _NAMED else best[:_NAMED]
    write_labels(canvas, [Label(each.x, each.y, each.row.name) for each in named], left, width, height - bottom)
    return canvas.markup()


def _stair(canvas: Canvas, best: list[_Point], end: float) -> None:
    """What is reached at each cost."""
    corners: list[tuple[float, float]] = []
    for point in best:
        corners += [(point.x, corners[-1][1]), (point.x, point.y)] if corners else [(point.x, point.y)]
    if corners:
        canvas.polyline([*corners, (end, corners[-1][1])], "front")


def _whisker(canvas: Canvas, point: _Point, scale: _Scale, on_front: bool, *, capped: bool) -> None:
    assert point.row.accuracy is not None
    canvas.line(point.x, point.low, point.x, point.high, "whisker")
    for y in (point.low, point.high) if capped else ():
        canvas.line(point.x - 4, y, point.x + 4, y, "whisker")
    share = point.row.accuracy.overall
    tip = f"{point.row.name}: {show.percent(share.value)} ({show.interval_of(share)}), {scale.write(point.cost)}"
    canvas.circle(point.x, point.y, 5, "on-front" if on_front else "point", tip=tip, data=share.value)
