"""The figures of a report beside its tables: TTFT by stage, and a bar for each share.

Each is drawn for a given width, once for a wide page and once for a phone, so that its text stays readable. Whatever is
labelled is labelled where it stands.
"""

from __future__ import annotations

from edgevlm.bench import format as show
from edgevlm.bench.pairs import Proportion
from edgevlm.bench.render.labels import FONT
from edgevlm.bench.render.svg import Canvas, shortened, text_width, thinned, ticks
from edgevlm.bench.report import Report, Stages
from edgevlm.bench.stats import Summary

#: Stage, as a reader knows it, and its CSS class.
STAGES = (
    ("preprocess", "preprocess_ms", "s1"),
    ("vision", "vision_ms", "s2"),
    ("fusion", "fusion_ms", "s5"),
    ("prefill", "prefill_ms", "s3"),
    ("first decode", "first_decode_ms", "s4"),
)
SMALL = 11.5
#: Dots of a drawing; they are fewer a row the more rows there are, and none beyond so many rows.
_DOTS = 2400
_ROWS_WITH_DOTS = 40
_FEW = 60


def ttft_bars(report: Report, width: float) -> str:
    """Stacked bars of the mean stage times, which add up to the mean TTFT; dots below for steady answers."""
    rows = [row for row in report.rows if row.latency is not None or (row.kind == "bundle" and row.status == "failed")]
    timed = [row for row in rows if row.latency is not None]
    narrow = width < 500
    label = 6.0 if narrow else min(300.0, 16 + max(text_width(row.name, FONT) for row in rows))
    dotted = len(timed) <= _ROWS_WITH_DOTS
    pitch = (72.0 if narrow else 52.0) - (0 if dotted else 20)
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
        if not dotted:
            continue
        dot = "dot few" if len(row.latency.steady) < _FEW else "dot"
        for sample in thinned(row.latency.steady, _DOTS // len(timed)):
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
