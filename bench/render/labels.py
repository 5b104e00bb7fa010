"""Names beside the dots of a picture, moved up or down where two would overlap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgevlm.bench.render.svg import Canvas, shortened, text_width

FONT = 13.0
_LINE = 15


@dataclass(frozen=True)
class Label:
    """What is written beside the dot at (x, y)."""

    x: float
    y: float
    text: str


def write_labels(canvas: Canvas, labels: Sequence[Label], left: float, right: float, bottom: float) -> None:
    """Write each label to the right of its dot, or to the left where there is more room, between these edges."""
    taken: list[tuple[float, float, float]] = []
    for label in sorted(labels, key=lambda each: each.y):
        to_right = right - label.x >= min(text_width(label.text, FONT) + 10, label.x - left)
        text = shortened(label.text, FONT, (right - label.x if to_right else label.x - left) - 10)
        wide = text_width(text, FONT)
        x = label.x + 10 if to_right else label.x - 10 - wide
        y = _free_height(label.y + 4, x, wide, taken, bottom)
        taken.append((x, x + wide, y))
        if abs(y - label.y - 4) > 1:
            canvas.line(label.x, label.y, label.x + (9 if to_right else -9), y - 4, "leader")
        canvas.text(label.x + (10 if to_right else -10), y, text, "label", "start" if to_right else "end")


def _free_height(wanted: float, x: float, wide: float, taken: list[tuple[float, float, float]], bottom: float) -> float:
    """The baseline nearest to `wanted` at which a label from `x` to `x + wide` overlaps none of `taken`."""
    for distance in range(0, int(bottom), _LINE):
        for y in (wanted + distance, wanted - distance):
            inside = _LINE < y < bottom - 4
            if inside and not any(abs(y - at) < _LINE and x < end and start < x + wide for start, end, at in taken):
                return y
    return wanted
