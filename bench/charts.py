"""The figures of a report: TTFT by stage, accuracy against latency, accuracy by question type.

Each is drawn for a given width, once for a wide page and once for a phone, so that its text stays readable. Whatever is
labelled is labelled where it stands.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from edgevlm.bench import format as show
from edgevlm.bench.pairs import Proportion
from edgevlm.bench.report import Report, Row, Stages
from edgevlm.bench.stats import Summary
from edgevlm.bench.svg import Canvas, shortened, text_width, ticks

#: Stage, as a reader knows it, and its CSS class.
STAGES = (
    ("preprocess", "preprocess_ms", "s1"),
    ("vision", "vision_ms", "s2"),
    ("fusion", "fusion_ms", "s5"),
    ("prefill", "prefill_ms", "s3"),
    ("first decode", "first_decode_ms", "s4"),
)
_FONT = 13.0
_SMALL = 11.5
_LINE = 15
_DOT_LIMIT = 400
_FEW = 60


def ttft_bars(report: Report, width: float) -> str:
    """Stacked bars of the mean stage times, which add up to the mean TTFT; a dot below for every steady answer."""
    rows = [row for row in report.rows if row.latency is not None or (row.kind == "bundle" and row.status == "failed")]
    timed = [row for row in rows if row.latency is not None]
    narrow = width < 500
    label = 6.0 if narrow else min(220.0, 16 + max(text_width(row.name, _FONT) for row in rows))
    pitch = 72.0 if narrow else 52.0
    top, bottom, right = 30.0, 42.0, 84.0
    canvas = Canvas(width, top + pitch * len(rows) + bottom, "Mean time to first token by stage, in milliseconds")
    longest = max((max(s.ttft_ms for s in row.latency.steady) for row in timed if row.latency), default=1.0)
    scale = (width - label - right) / longest
    _key(canvas, label, [row.latency.stages for row in timed if row.latency])
    base = top + pitch * len(rows)
    for tick in ticks(0, longest, 4 if narrow else 7):
        x = label + tick * scale
        canvas.line(x, top, x, base + 4, "grid")
        canvas.text(x, base + 18, f"{tick:,.0f}" if longest >= 8 else f"{tick:g}", "axis", "middle")
    canvas.text(label, base + 36, "time to first token, ms (steady, unique images)", "axis")
    for index, row in enumerate(rows):
        y = top + pitch * index + (24 if narrow else 8)
        if narrow:
            canvas.text(label, y - 6, shortened(row.name, _FONT, width), "label")
        else:
            canvas.text(label - 10, y + 16, shortened(row.name, _FONT, label - 14), "label", "end")
        if row.latency is None:
            reason = shortened(f"failed: {row.reason}", _SMALL, width - label - 8)
            canvas.rect(label, y, 3, 22, "failed")
            canvas.text(label + 10, y + 15, reason, "failed-text")
            continue
        _stack(canvas, row.latency.stages, label, y, scale)
        mean = row.latency.ttft_steady_ms.mean
        canvas.text(label + mean * scale + 7, y + 16, show.milliseconds(mean), "value")
        dot = "dot few" if len(row.latency.steady) < _FEW else "dot"
        for sample in row.latency.steady[:_DOT_LIMIT]:
            canvas.circle(label + sample.ttft_ms * scale, y + 30, 1.7, dot, data=sample.ttft_ms)
    return canvas.markup()


def _key(canvas: Canvas, left: float, shown: list[Stages]) -> None:
    """The stages that any model has by colour, on one line above the bars."""
    x = left
    for name, attribute, css in STAGES:
        if all(getattr(stages, attribute) is None for stages in shown):
            continue
        canvas.rect(x, 6, 10, 10, css)
        canvas.text(x + 14, 15, name, "axis")
        x += 14 + text_width(name, _SMALL) + 16


def _stack(canvas: Canvas, stages: Stages, left: float, y: float, scale: float) -> None:
    x = left
    for name, attribute, css in STAGES:
        summary: Summary | None = getattr(stages, attribute)
        if summary is None:
            continue
        mean = summary.mean
        canvas.rect(x, y, mean * scale, 22, css, tip=f"{name}: {show.milliseconds(mean)}", data=mean)
        text = show.three_digits(mean)
        if text_width(text, _SMALL) + 8 < mean * scale:
            canvas.text(x + mean * scale / 2, y + 15.5, text, f"on-{css}", "middle")
        x += mean * scale


@dataclass(frozen=True)
class _Point:
    row: Row
    x: float
    y: float
    low: float
    high: float


def accuracy_scatter(report: Report, width: float) -> str:
    """Accuracy with its 95% interval against the median TTFT; the baseline without a time is a line across."""
    left, right, top, bottom = 48.0, 18.0, 14.0, 46.0
    height = 330.0 if width < 500 else 380.0
    canvas = Canvas(width, height, "Accuracy with 95% interval against median time to first token")
    shares = [row.accuracy.overall for row in report.rows if row.accuracy is not None]
    floor, ceiling = _accuracy_range(shares)
    times = [row.latency.ttft_steady_ms.median for row in report.rows if row.accuracy and row.latency]
    start, end, logarithmic = _time_range(times)

    def x_of(ms: float) -> float:
        low, high, at = (math.log(v) for v in (start, end, ms)) if logarithmic else (start, end, ms)
        return left + (at - low) / (high - low) * (width - left - right)

    def y_of(share: float) -> float:
        return top + (ceiling - share) / (ceiling - floor) * (height - top - bottom)

    for tick in ticks(floor * 100, ceiling * 100, 6):
        y = y_of(tick / 100)
        canvas.line(left, y, width - right, y, "grid")
        canvas.text(left - 7, y + 4, f"{tick:g}%", "axis", "end")
    for tick in _time_ticks(start, end, logarithmic, 4 if width < 500 else 8):
        canvas.line(x_of(tick), height - bottom, x_of(tick), height - bottom + 4, "tick")
        canvas.text(x_of(tick), height - bottom + 18, f"{tick:,g}", "axis", "middle")
    scale = ", logarithmic" if logarithmic else ""
    canvas.text(left, height - 8, f"median time to first token, ms (steady{scale})", "axis")
    canvas.line(left, height - bottom, width - right, height - bottom, "tick")
    points = []
    for row in report.rows:
        share = row.accuracy.overall if row.accuracy else None
        if share is None or share.value is None or share.low is None or share.high is None:
            continue
        if row.latency is None:
            canvas.line(left, y_of(share.value), width - right, y_of(share.value), "baseline")
            text = shortened(f"{row.name} {show.percent(share.value)}", _SMALL, width - left - right)
            canvas.text(left + 4, y_of(share.value) - 5, text, "axis halo")
            continue
        x = x_of(row.latency.ttft_steady_ms.median)
        points.append(_Point(row, x, y_of(share.value), y_of(share.low), y_of(share.high)))
    for point in points:
        _whisker(canvas, point)
    _label_points(canvas, points, left, width, height - bottom)
    return canvas.markup()


def _whisker(canvas: Canvas, point: _Point) -> None:
    assert point.row.accuracy is not None
    assert point.row.latency is not None
    canvas.line(point.x, point.low, point.x, point.high, "whisker")
    for y in (point.low, point.high):
        canvas.line(point.x - 4, y, point.x + 4, y, "whisker")
    time, share = point.row.latency.ttft_steady_ms.median, point.row.accuracy.overall
    tip = f"{point.row.name}: {show.percent(share.value)} ({show.interval_of(share)}), {show.milliseconds(time)}"
    canvas.circle(point.x, point.y, 5, "point", tip=tip, data=share.value)


def _label_points(canvas: Canvas, points: list[_Point], left: float, right: float, bottom: float) -> None:
    """A name beside each dot, moved up or down where two would overlap."""
    taken: list[tuple[float, float, float]] = []
    for point in sorted(points, key=lambda p: p.y):
        to_right = right - point.x >= min(text_width(point.row.name, _FONT) + 10, point.x - left)
        text = shortened(point.row.name, _FONT, (right - point.x if to_right else point.x - left) - 10)
        wide = text_width(text, _FONT)
        x = point.x + 10 if to_right else point.x - 10 - wide
        y = _free_height(point.y + 4, x, wide, taken, bottom)
        taken.append((x, x + wide, y))
        if abs(y - point.y - 4) > 1:
            canvas.line(point.x, point.y, point.x + (9 if to_right else -9), y - 4, "leader")
        canvas.text(point.x + (10 if to_right else -10), y, text, "label", "start" if to_right else "end")


def _free_height(wanted: float, x: float, wide: float, taken: list[tuple[float, float, float]], bottom: float) -> float:
    """The baseline nearest to `wanted` at which a label from `x` to `x + wide` overlaps none of `taken`."""
    for distance in range(0, int(bottom), _LINE):
        for y in (wanted + distance, wanted - distance):
            inside = _LINE < y < bottom - 4
            if inside and not any(abs(y - at) < _LINE and x < end and start < x + wide for start, end, at in taken):
                return y
    return wanted


def _accuracy_range(shares: list[Proportion]) -> tuple[float, float]:
    lows = [share.low for share in shares if share.low is not None]
    highs = [share.high for share in shares if share.high is not None]
    if not lows or not highs:
        return 0.0, 1.0
    pad = max(0.01, 0.12 * (max(highs) - min(lows)))
    return max(0.0, min(lows) - pad), min(1.0, max(highs) + pad)


def _time_range(times: list[float]) -> tuple[float, float, bool]:
    """Start and end of the time axis, and whether it is logarithmic: beyond a factor of eight."""
    if not times:
        return 0.0, 1.0, False
    low, high = min(times), max(times)
    if high > 8 * low:
        return low / 1.6, high * 1.6, True
    return 0.0, high * 1.18, False


def _time_ticks(start: float, end: float, logarithmic: bool, count: int) -> list[float]:
    if not logarithmic:
        return ticks(start, end, count)
    powers = range(math.floor(math.log10(start)), math.ceil(math.log10(end)) + 1)
    found = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
    return [value for value in found if start <= value <= end]


def share_bar(share: Proportion, chance: float) -> str:
    """A cell of the type table: the share from 0 to 100%, its interval, and a tick where chance stands."""
    width = 76.0
    canvas = Canvas(width, 14, f"{show.percent(share.value)}, chance {show.percent(chance)}")
    canvas.rect(0, 4, width, 6, "track")
    if share.value is not None and share.low is not None and share.high is not None:
        canvas.rect(0, 4, share.value * width, 6, "bar", data=share.value)
        canvas.line(share.low * width, 7, share.high * width, 7, "whisker")
    canvas.line(chance * width, 1, chance * width, 13, "chance")
    return canvas.markup()
