"""How times are distributed, row by row: a ridge for each, its median and upper percentiles on it, one axis for all."""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgevlm.bench import format as show
from edgevlm.bench.render.axes import Axis
from edgevlm.bench.render.labels import FONT
from edgevlm.bench.render.svg import Canvas, shortened, text_width
from edgevlm.bench.report import Report, Row
from edgevlm.bench.stats import samples_needed

Quantity: TypeAlias = Literal["ttft", "gaps"]
_TITLES: dict[Quantity, str] = {
    "ttft": "time to first token, ms (steady)",
    "gaps": "time between two tokens, ms (steady)",
}
_BINS, _DENSE_BINS = 36, 20
#: Fewer samples than this are drawn one by one.
_FEW = 20
_DENSE = 40
_LINEAR_UP_TO = 8
#: The axis ends here, for one straggler would press all else into a corner.
_LAST = 99.5


def _samples(row: Row, quantity: Quantity) -> NDArray[np.float64]:
    steady = row.latency.steady if row.latency is not None else []
    if quantity == "ttft":
        return np.array([sample.ttft_ms for sample in steady])
    return np.array([gap for sample in steady for gap in sample.gaps_ms])


def ridges(report: Report, quantity: Quantity, width: float) -> str:
    """The picture; empty where nothing was timed."""
    drawn = [(row, values) for row in report.rows if (values := _samples(row, quantity)).size]
    if not drawn:
        return ""
    narrow = width < 500
    pitch = (58.0 if narrow else 46.0) - (14 if len(drawn) > _DENSE else 0)
    label = 6.0 if narrow else min(300.0, 16 + max(text_width(row.name, FONT) for row, _ in drawn))
    top, bottom, right = 22.0, 42.0, 60.0 if narrow else 84.0
    canvas = Canvas(width, top + pitch * len(drawn) + bottom, f"Distribution of the {_TITLES[quantity]}, by bundle")
    across = _axis([values for _, values in drawn], label, width - right)
    base = top + pitch * len(drawn)
    for tick in across.ticks(4 if narrow else 7):
        canvas.line(across.at(tick), top - 8, across.at(tick), base + 4, "grid")
        canvas.text(across.at(tick), base + 18, f"{tick:,g}", "axis", "middle")
    logarithmic = ", logarithmic" if across.logarithmic else ""
    canvas.text(label, base + 36, f"{_TITLES[quantity]}{logarithmic}", "axis")
    for index, (row, values) in enumerate(drawn):
        y = top + pitch * (index + 1) - 6
        if narrow:
            canvas.text(label, y - pitch + 19, shortened(row.name, FONT, width), "label")
        else:
            canvas.text(label - 10, y - 4, shortened(row.name, FONT, label - 14), "label", "end")
        bins = _BINS if len(drawn) <= _DENSE else _DENSE_BINS
        _ridge(canvas, values, across, y, pitch - (24 if narrow else 8), bins, row.name)
        canvas.text(width - right + 8, y - 4, f"n={values.size:,}", "axis")
    return canvas.markup()


def _axis(samples: list[NDArray[np.float64]], start: float, end: float) -> Axis:
    low = min(float(values.min()) for values in samples)
    high = max(float(np.percentile(values, _LAST)) for values in samples)
    if low > 0 and high > _LINEAR_UP_TO * low:
        return Axis(low / 1.1, high * 1.1, start, end, logarithmic=True)
    room = max(0.06 * (high - low), 0.01 * high, 1e-6)
    return Axis(max(0.0, low - room), high + room, start, end)


def _ridge(
    canvas: Canvas, values: NDArray[np.float64], across: Axis, y: float, height: float, bins: int, name: str
) -> None:
    """The samples as a shape over a line at `y`, or one by one where they are few; the median and p95 as ticks."""
    canvas.line(across.start, y, across.end, y, "grid")
    if values.size < _FEW:
        for value in values:
            canvas.circle(across.at(float(value)), y - 5, 2.4, "dot few", data=float(value))
    else:
        low, high = ((math.log(end) if across.logarithmic else end) for end in (across.low, across.high))
        edges = np.linspace(low, high, bins + 1)
        places = np.log(np.maximum(values, across.low)) if across.logarithmic else values
        counts, _ = np.histogram(np.minimum(places, edges[-1]), bins=edges)
        x = np.linspace(across.start, across.end, bins + 1)
        tall = counts / counts.max() * height
        shape = [
            point
            for index in range(bins)
            if counts[max(0, index - 1) : index + 2].any()
            for point in ((x[index], y - tall[index]), (x[index + 1], y - tall[index]))
        ]
        closed = [(shape[0][0], y), *((float(a), float(b)) for a, b in shape), (shape[-1][0], y)]
        median = float(np.median(values))
        canvas.polygon(closed, "ridge", tip=f"{name}: {show.milliseconds(median)} in the median", data=median)
    for q, css, needed in ((50, "whisker", 1), (95, "p95", samples_needed(95))):
        at = float(np.percentile(values, q))
        if values.size >= needed and across.low <= at <= across.high:
            canvas.line(across.at(at), y - height * 0.55, across.at(at), y + 4, css)
