"""The figure of a comparison: how much worse each judged figure got, with its interval, and the tolerance as a band."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgevlm.bench import format as show
from edgevlm.bench.comparison import Comparison, Judgement
from edgevlm.bench.pairs import Interval
from edgevlm.bench.render.axes import Axis
from edgevlm.bench.render.svg import Canvas, shortened, text_width, ticks

#: Figures that are drawn: the worst.
LIMIT = 40
_SMALL = 11.5
_PITCH = 24.0
_CSS: dict[Judgement, str] = {
    "regression": "failed",
    "undecided": "other",
    "unchanged": "point",
    "improvement": "on-front",
}


@dataclass(frozen=True)
class Worsening:
    """How much worse one figure of one row got, as a share of the old value; negative is better."""

    row: str
    figure: str
    worse: Interval
    judgement: Judgement


def worsenings(comparison: Comparison) -> list[Worsening]:
    """Every judged figure that is a share of its old value, the worst first."""
    found = []
    for row in comparison.rows:
        for change in row.changes:
            if not change.judged or (change.interval is None and change.old_n is not None):
                continue
            apart = change.interval or Interval(value=change.change, low=change.change, high=change.change)
            if change.better == "higher":
                apart = Interval(value=_slower(apart.value), low=_slower(apart.high), high=_slower(apart.low))
            found.append(Worsening(row.name, change.figure, apart, change.judgement))
    return sorted(found, key=lambda each: -each.worse.low)


def _slower(change: float) -> float:
    """A rate that changes by this share takes so much more time."""
    return 1 / (1 + change) - 1


def forest(comparison: Comparison, width: float) -> str:
    """One line a figure: a dot at its change, its interval as a bar, zero and the tolerance behind."""
    drawn = worsenings(comparison)[:LIMIT]
    narrow = width < 500
    pitch = 38.0 if narrow else _PITCH
    label = 8.0 if narrow else min(360.0, 16 + max((text_width(_label(each), _SMALL) for each in drawn), default=0))
    top, bottom, right = 12.0, 44.0, 24.0
    canvas = Canvas(width, top + pitch * len(drawn) + bottom, "How much worse each figure got, with 95% intervals")
    across = _axis(drawn, comparison.tolerance, label, width - right)
    base = top + pitch * len(drawn)
    edges = [across.at(max(across.low, -comparison.tolerance)), across.at(min(across.high, comparison.tolerance))]
    canvas.rect(edges[0], top, edges[1] - edges[0], base - top, "band")
    for tick in ticks(across.low, across.high, 4 if narrow else 8):
        canvas.line(across.at(tick), top, across.at(tick), base + 4, "tick" if tick == 0 else "grid")
        canvas.text(across.at(tick), base + 18, show.change(tick), "axis", "middle")
    canvas.text(label, base + 37, "worse than before (less is better; the band is the tolerance)", "axis")
    for index, each in enumerate(drawn):
        y = top + pitch * (index + (0.72 if narrow else 0.5))
        if narrow:
            canvas.text(label, y - 11, shortened(_label(each), _SMALL, width - 16), "axis halo")
        else:
            canvas.text(label - 12, y + 4, shortened(_label(each), _SMALL, label - 14), "axis", "end")
        low, high = (min(max(end, across.low), across.high) for end in (each.worse.low, each.worse.high))
        canvas.line(across.at(low), y, across.at(high), y, "whisker")
        tip = f"{_label(each)}: {show.change(each.worse.value)} ({show.change_interval(each.worse)})"
        at = across.at(min(max(each.worse.value, across.low), across.high))
        canvas.circle(at, y, 4.5, _CSS[each.judgement], tip=tip, data=each.worse.value)
    return canvas.markup()


def _label(each: Worsening) -> str:
    return f"{each.row} · {each.figure}"


def _axis(drawn: Sequence[Worsening], tolerance: float, start: float, end: float) -> Axis:
    """From the lowest end to the highest, the tolerance and zero among them; no further than doubled or a third."""
    low = max(-0.7, min([-2 * tolerance, *(each.worse.low for each in drawn)]))
    high = min(2.0, max([2 * tolerance, *(each.worse.high for each in drawn)]))
    room = max(0.01, 0.05 * (high - low))
    return Axis(low - room, high + room, start, end)
