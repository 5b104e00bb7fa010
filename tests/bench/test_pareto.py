"""The Pareto front is exactly the points that no other one beats, whatever their order and ties."""

import numpy as np
import pytest

from edgevlm.bench.pareto import front

Points = list[tuple[float, float]]


def beaten(points: Points, index: int) -> bool:
    """By definition, against every other point."""
    cost, value = points[index]
    return any(c <= cost and v >= value and (c, v) != (cost, value) for c, v in points)


@pytest.mark.parametrize("seed", range(40))
def test_front_is_what_the_definition_says(seed: int) -> None:
    """Few different values, so that ties of every kind occur."""
    rng = np.random.default_rng(seed)
    points = [(float(c), float(v)) for c, v in rng.integers(0, 6, (rng.integers(1, 25), 2))]
    found = front(points)
    assert sorted(found) == [index for index in range(len(points)) if not beaten(points, index)]
    assert [points[index][0] for index in found] == sorted(points[index][0] for index in found)


def test_no_points_have_no_front() -> None:
    assert front([]) == []
