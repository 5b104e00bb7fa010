"""The figures of a report: TTFT by stage, accuracy against latency, accuracy by question type.

Each is drawn for a given width, once for a wide page and once for a phone, so that its text stays readable. Whatever is
labelled is labelled where it stands.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgevlm.bench import format as show
from edgevlm.bench.axes import cost_axis, share_axis
from edgevlm.bench.labels import FONT, Label, write_labels
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
SMALL = 11.5
_DOT_LIMIT = 400
_FEW = 60


def ttft_bars(report: Report, width: float) -> str:
    """Stacked bars of the mean stage times, which add up to the mean TTFT; a dot below for every steady answer."""
    rows = [row for row in report.rows if row.latency is not None or (row.kind == "bundle" and row.status == "failed")]
    timed = [row for row in rows if row.latency is not None]
    narrow = width < 500
    label = 6.0 if narrow else min(220.0, 16 + max(text_width(row.name, FONT) for row in rows))
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
            canvas.text(label, y - 6, shortened(row.name, FONT, width), "label")
        else:
            canvas.text(label - 10, y + 16, shortened(row.name, FONT, label - 14), "label", "end")
        if row.latency is None:
            reason = shortened(f"failed: {row.reason}", SMALL, width - label - 8)
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
        x += 14 + text_width(name, SMALL) + 16


def _stack(canvas: Canvas, stages: Stages, left: float, y: float, scale: float) -> None:
    x = left
    for name, attribute, css in STAGES:
        summary: Summary | None = getattr(stages, attribute)
        if summary is None:
            continue
        mean = summary.mean
        canvas.rect(x, y, mean * scale, 22, css, tip=f"{name}: {show.milliseconds(mean)}", data=mean)
        text = show.three_digits(mean)
        if text_width(text, SMALL) + 8 < mean * scale:
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
    times = [row.latency.ttft_steady_ms.median for row in report.rows if row.accuracy and row.latency]
    across = cost_axis(times, left, width - right)
    up = share_axis(shares, height - bottom, top)
    for tick in ticks(up.low * 100, up.high * 100, 6):
        y = up.at(tick / 100)
        canvas.line(left, y, width - right, y, "grid")
        canvas.text(left - 7, y + 4, f"{tick:g}%", "axis", "end")
    for tick in across.ticks(4 if width < 500 else 8):
        canvas.line(across.at(tick), height - bottom, across.at(tick), height - bottom + 4, "tick")
        canvas.text(across.at(tick), height - bottom + 18, f"{tick:,g}", "axis", "middle")
    scale = ", logarithmic" if across.logarithmic else ""
    canvas.text(left, height - 8, f"median time to first token, ms (steady{scale})", "axis")
    canvas.line(left, height - bottom, width - right, height - bottom, "tick")
    points = []
    for row in report.rows:
        share = row.accuracy.overall if row.accuracy else None
        if share is None or share.value is None or share.low is None or share.high is None:
            continue
        if row.latency is None:
            canvas.line(left, up.at(share.value), width - right, up.at(share.value), "baseline")
            text = shortened(f"{row.name} {show.percent(share.value)}", SMALL, width - left - right)
            canvas.text(left + 4, up.at(share.value) - 5, text, "axis halo")
            continue
        x = across.at(row.latency.ttft_steady_ms.median)
        points.append(_Point(row, x, up.at(share.value), up.at(share.low), up.at(share.high)))
    for point in points:
        _whisker(canvas, point)
    names = [Label(point.x, point.y, point.row.name) for point in points]
    write_labels(canvas, names, left, width, height - bottom)
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
