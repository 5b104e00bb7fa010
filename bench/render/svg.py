"""A small SVG canvas: elements go in as numbers and text, markup comes out escaped.

Colours are CSS classes, so that one drawing serves the light and the dark page.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar
from xml.etree import ElementTree

#: Mean width of a character of the page's sans-serif font, in em.
_CHARACTER_EM = 0.6
T = TypeVar("T")


class Canvas:
    """A drawing of `width` by `height` CSS pixels."""

    def __init__(self, width: float, height: float, title: str) -> None:
        self.width = width
        self.height = height
        self._root = ElementTree.Element(
            "svg",
            {
                "xmlns": "http://www.w3.org/2000/svg",
                "viewBox": f"0 0 {_number(width)} {_number(height)}",
                "width": _number(width),
                "height": _number(height),
                "role": "img",
                "aria-label": title,
            },
        )

    def rect(
        self, x: float, y: float, width: float, height: float, css: str, *, tip: str = "", data: float | None = None
    ) -> None:
        """A rectangle; `tip` shows on hover, `data` is the figure it stands for."""
        box = {"x": _number(x), "y": _number(y), "width": _number(max(0.0, width)), "height": _number(height)}
        self._add("rect", {**box, "class": css}, tip, data)

    def line(self, x1: float, y1: float, x2: float, y2: float, css: str) -> None:
        """A straight line."""
        self._add("line", {"x1": _number(x1), "y1": _number(y1), "x2": _number(x2), "y2": _number(y2), "class": css})

    def circle(self, x: float, y: float, radius: float, css: str, *, tip: str = "", data: float | None = None) -> None:
        """A dot."""
        self._add("circle", {"cx": _number(x), "cy": _number(y), "r": _number(radius), "class": css}, tip, data)

    def polyline(self, points: Sequence[tuple[float, float]], css: str) -> None:
        """A line through several points."""
        joined = " ".join(f"{_number(x)},{_number(y)}" for x, y in points)
        self._add("polyline", {"points": joined, "class": css})

    def polygon(
        self, points: Sequence[tuple[float, float]], css: str, *, tip: str = "", data: float | None = None
    ) -> None:
        """A filled shape; tenths of a pixel are enough for it."""
        joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self._add("polygon", {"points": joined, "class": css}, tip, data)

    def text(self, x: float, y: float, text: str, css: str, anchor: str = "start") -> None:
        """Text whose baseline starts, ends or is centred at (x, y)."""
        aligned = {} if anchor == "start" else {"text-anchor": anchor}
        element = self._add("text", {"x": _number(x), "y": _number(y), "class": css, **aligned})
        element.text = text

    def markup(self) -> str:
        """The `<svg>` element."""
        return ElementTree.tostring(self._root, encoding="unicode")

    def _add(
        self, tag: str, attributes: dict[str, str], tip: str = "", data: float | None = None
    ) -> ElementTree.Element:
        if data is not None:
            attributes = {**attributes, "data-value": repr(data)}
        element = ElementTree.SubElement(self._root, tag, attributes)
        if tip:
            ElementTree.SubElement(element, "title").text = tip
        return element


def thinned(values: Sequence[T], limit: int) -> list[T]:
    """At most `limit` of the values, evenly spaced, the first and the last among them."""
    if len(values) <= limit:
        return list(values)
    return [values[round(index * (len(values) - 1) / (limit - 1))] for index in range(limit)]


def text_width(text: str, size: float) -> float:
    """About how wide `text` is at a font size in pixels."""
    return len(text) * size * _CHARACTER_EM


def shortened(text: str, size: float, room: float) -> str:
    """`text`, cut with an ellipsis where it is wider than `room` pixels."""
    fits = int(room / (size * _CHARACTER_EM))
    return text if len(text) <= fits else f"{text[: max(1, fits - 1)]}…"


def ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round values (1, 2, 2.5 or 5 times a power of ten apart) within [low, high]."""
    if high <= low:
        return [low]
    rough = (high - low) / max(1, count)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
