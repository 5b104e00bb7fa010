"""The Pareto front of things that cost something and are worth something."""

from __future__ import annotations

from collections.abc import Sequence


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indexes of the points that no other one beats, cheapest first.

    One point beats another if it costs no more and is worth no less, and is better in one of the two. Equal points do
    not beat each other.

    Args:
        points: `(cost, value)` each.
    """
    order = sorted(range(len(points)), key=lambda index: (points[index][0], -points[index][1]))
    kept: list[int] = []
    for index in order:
        cost, value = points[index]
        if not kept or value > points[kept[-1]][1] or (cost, value) == points[kept[-1]]:
            kept.append(index)
    return kept
