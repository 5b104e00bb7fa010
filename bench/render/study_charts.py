"""The pictures of a study: accuracy against tokens and against time with the Pareto front, and one panel a method.

Each is drawn for a given width, like the figures of `edgevlm.bench.render.charts`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from edgevlm.bench import format as show
from edgevlm.bench.grid import PLAIN, by_method, kept, method_label, share, study_of, tokens, ttft, unpruned
from edgevlm.bench.render.axes import Axis, cost_axis, share_axis
from edgevlm.bench.render.labels import Label, write_labels
from edgevlm.bench.render.svg import Canvas, text_width, ticks
from edgevlm.bench.report import Report, Row

Cost: TypeAlias = Literal["tokens", "ttft"]
_TITLES = {
    "tokens": "visual tokens of an image, mean over the decoder's layers",
    "ttft": "median time to first token, ms (steady)",
}
_SMALL = 11.5
_ROOM = 6.0


@dataclass(frozen=True)
class _Frame:
    """Where things stand in a picture."""

    canvas: Canvas
    across: Axis
    up: Axis
    report: Report
    cost: Cost

    def place(self, row: Row) -> tuple[float, float] | None:
        """A row's dot; None where a figure is missing."""
        value, cost = share(row), tokens(self.report, row) if self.cost == "tokens" else ttft(self.report.rows, row)
        return None if value is None or cost is None else (self.across.at(cost), self.up.at(value))

    def trace(self, rows: list[Row]) -> list[tuple[float, float]]:
        """The dots of several rows, by cost."""
        return sorted(place for row in rows if (place := self.place(row)) is not None)


def front_chart(report: Report, cost: Cost, width: float) -> str:
    """All cells as dots, the Pareto front as a stair, plain methods as dashed lines, the unpruned model across."""
    left, right, top, bottom = 48.0, 18.0, 14.0, 58.0 if cost == "tokens" else 46.0
    height = 360.0 if width < 500 else 440.0
    names = {"tokens": "visual tokens", "ttft": "time to first token"}
    canvas = Canvas(width, height, f"Accuracy against {names[cost]}, with the Pareto front")
    shares = [row.accuracy.overall for row in report.rows if row.accuracy is not None]
    across = _cost_axis(report, cost, left, width - right)
    frame = _Frame(canvas, across, share_axis(shares, height - bottom, top), report, cost)
    _scales(frame, left, width - right, height - bottom)
    _full_line(frame, left, width - right)
    on_front = study_of(report).front_tokens if cost == "tokens" else study_of(report).front_ttft
    named = [place for row in report.rows if row.name in on_front and (place := frame.place(row)) is not None]
    labels = []
    for name, rows in by_method(report).items():
        trace = frame.trace(rows)
        if name in PLAIN and len(trace) > 1:
            canvas.polyline(trace, "plain")
            labels += [Label(*trace[0], name)] if trace[0] not in named else []
    for row in report.rows:
        place = frame.place(row)
        if place is not None and row.name not in on_front:
            canvas.circle(*place, 3.2, "other", tip=_tip(report, row), data=share(row))
    labels = [*_stair(frame, on_front, width - right), *labels]
    write_labels(canvas, labels, left, width, height - bottom)
    return canvas.markup()


def _stair(frame: _Frame, on_front: list[str], end: float) -> list[Label]:
    """The front: what is reached at each cost. Returns the names of its dots."""
    rows = {row.name: row for row in frame.report.rows}
    found = [(rows[name], place) for name in on_front if (place := frame.place(rows[name])) is not None]
    corners: list[tuple[float, float]] = []
    for _, (x, y) in found:
        corners += [(x, corners[-1][1]), (x, y)] if corners else [(x, y)]
    if corners:
        frame.canvas.polyline([*corners, (end, corners[-1][1])], "front")
    labels = []
    for row, (x, y) in found:
        assert row.accuracy is not None
        low, high = row.accuracy.overall.low, row.accuracy.overall.high
        if low is not None and high is not None:
            frame.canvas.line(x, frame.up.at(low), x, frame.up.at(high), "whisker")
        frame.canvas.circle(x, y, 5, "on-front", tip=_tip(frame.report, row), data=share(row))
        if row.pruning is not None:
            # Above the stair, which runs to the right; how many tokens it has stands below its dot.
            text = method_label(row.pruning) if frame.cost == "tokens" else row.name
            labels.append(Label(x, y - 11, text))
    return labels


def method_panel(report: Report, method: str, width: float) -> str:
    """Accuracy against tokens of one method among the others; the plain ones dashed."""
    left, right, top, bottom = 40.0, 8.0, 8.0, 20.0
    height = 0.62 * width
    canvas = Canvas(width, height, f"Accuracy of {method} against visual tokens")
    shares = [row.accuracy.overall for row in report.rows if row.accuracy is not None]
    across = _cost_axis(report, "tokens", left, width - right)
    frame = _Frame(canvas, across, share_axis(shares, height - bottom, top), report, "tokens")
    for tick in ticks(frame.up.low * 100, frame.up.high * 100, 3):
        y = frame.up.at(tick / 100)
        canvas.line(left, y, width - right, y, "grid")
        canvas.text(left - 5, y + 4, f"{tick:g}%", "axis", "end")
    for count, x in _counts(frame, 22):
        canvas.text(x, height - 5, f"{count:.0f}", "axis", "middle")
    _full_line(frame, left, width - right)
    methods = by_method(report)
    for name, rows in methods.items():
        if name != method:
            canvas.polyline(frame.trace(rows), "plain" if name in PLAIN else "faded")
    canvas.polyline(frame.trace(methods[method]), "own")
    for row in methods[method]:
        place = frame.place(row)
        if place is not None:
            canvas.circle(*place, 3, "point", tip=_tip(report, row), data=share(row))
    return canvas.markup()


def _cost_axis(report: Report, cost: Cost, start: float, end: float) -> Axis:
    scored = [row for row in report.rows if row.accuracy is not None]
    if cost == "tokens":
        return cost_axis([float(tokens(report, row)) for row in scored], start, end)
    times = [time for row in scored if (time := ttft(report.rows, row)) is not None]
    if not times:
        return cost_axis([], start, end)
    pad = 0.08 * max(max(times) - min(times), 0.05 * max(times))
    return Axis(max(0.0, min(times) - pad), max(times) + 2 * pad, start, end)


def _scales(frame: _Frame, left: float, right: float, base: float) -> None:
    canvas = frame.canvas
    for tick in ticks(frame.up.low * 100, frame.up.high * 100, 6):
        y = frame.up.at(tick / 100)
        canvas.line(left, y, right, y, "grid")
        canvas.text(left - 7, y + 4, f"{tick:g}%", "axis", "end")
    canvas.line(left, base, right, base, "tick")
    if frame.cost == "tokens":
        full = study_of(frame.report).image_tokens
        for count, x in _counts(frame, 30):
            canvas.line(x, base, x, base + 4, "tick")
            canvas.text(x, base + 18, f"{count:.0f}", "axis", "middle")
            canvas.text(x, base + 31, f"{100 * count / full:.0f}%", "axis", "middle")
    else:
        for tick in frame.across.ticks(4 if right < 500 else 8):
            canvas.line(frame.across.at(tick), base, frame.across.at(tick), base + 4, "tick")
            canvas.text(frame.across.at(tick), base + 18, f"{tick:,g}", "axis", "middle")
    scale = ", logarithmic" if frame.across.logarithmic else ""
    canvas.text(left, canvas.height - 8, f"{_TITLES[frame.cost]}{scale}", "axis")


def _counts(frame: _Frame, room: float) -> list[tuple[float, float]]:
    """The token counts of the grid that have room beside each other, and where they stand; the unpruned one first."""
    rows = [row for row in frame.report.rows if row.accuracy is not None]
    uses = [tokens(frame.report, row) for row in rows]
    shown: list[tuple[float, float]] = []
    for count in sorted(
        set(uses), key=lambda count: (count != study_of(frame.report).image_tokens, -uses.count(count))
    ):
        x = frame.across.at(count)
        if all(abs(x - other) >= room for _, other in shown):
            shown.append((count, x))
    return shown


def _full_line(frame: _Frame, left: float, right: float) -> None:
    """The unpruned model's accuracy across, and its interval as a band."""
    row = unpruned(frame.report)
    if row.accuracy is None or row.accuracy.overall.value is None:
        return
    overall = row.accuracy.overall
    if overall.low is not None and overall.high is not None:
        top, base = frame.up.at(overall.high), frame.up.at(overall.low)
        frame.canvas.rect(left, top, right - left, base - top, "band")
    y = frame.up.at(overall.value or 0.0)
    frame.canvas.line(left, y, right, y, "baseline")
    text = f"{row.name} {show.percent(overall.value)}"
    if text_width(text, _SMALL) + 2 * _ROOM < right - left and frame.canvas.width > 300:
        frame.canvas.text(left + _ROOM, y - 5, text, "axis halo")


def _tip(report: Report, row: Row) -> str:
    assert row.accuracy is not None
    overall = row.accuracy.overall
    cost = row.pruning.method_ms if row.pruning else None
    method = f", method {show.added_time(cost.median)}" if cost is not None else ""
    parts = f"{show.percent(overall.value)} ({show.interval_of(overall)}), {kept(row, study_of(report).image_tokens)}"
    return f"{row.name}: {parts}, TTFT {show.milliseconds(ttft(report.rows, row))}{method}"
