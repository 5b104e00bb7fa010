"""Sampling frames by their times."""

from fractions import Fraction

import pytest

from edgevlm.errors import InputError
from edgevlm.video import sample


def test_one_frame_a_second_is_the_one_on_screen() -> None:
    seconds = [0.0, 0.4, 0.9, 1.0, 1.7, 3.2]
    assert sample("abcdef", seconds) == ["a", "d", "e", "e"]
    assert sample("abcdef", [10 + second for second in seconds]) == ["a", "d", "e", "e"]


@pytest.mark.parametrize("rate", [24, 30, 60])
def test_rounded_times_do_not_shift_frames(rate: int) -> None:
    seconds = [float(Fraction(index, rate)) for index in range(10 * rate + 1)]
    assert sample(range(len(seconds)), seconds) == [rate * second for second in range(11)]
    assert sample(range(len(seconds)), seconds, fps=0.5) == [2 * rate * tick for tick in range(6)]


def test_one_frame_is_enough_and_none_is_not() -> None:
    assert sample(["a"], [7.5]) == ["a"]
    with pytest.raises(InputError, match="no frames"):
        sample([], [])


@pytest.mark.parametrize(("seconds", "fps"), [([0.0], 1.0), ([1.0, 0.0], 1.0), ([0.0, 1.0], 0.0), ([0.0, 1.0], -1.0)])
def test_times_that_cannot_be_are_refused(seconds: list[float], fps: float) -> None:
    with pytest.raises(InputError):
        sample(["a", "b"], seconds, fps)
