"""Energy of known powers and counters is what calculus says; what was not read has none."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.integrate import quad, trapezoid

from edgevlm.targets.sensors.base import About, Reading
from edgevlm.targets.sensors.energy import curve
from edgevlm.targets.sensors.log import Track

ABOUT = About("test", "the board", ("a", "b"), ("a", "b"), 0.1)


def power(t: NDArray[np.float64]) -> Any:
    return 20 + 8 * np.sin(3 * t) + 5 * (t > 4)


def instants() -> NDArray[np.float64]:
    """Uneven, as threads wake up."""
    return np.cumsum(np.random.default_rng(5).uniform(0.005, 0.02, 1000)) + 3.0


def powers(t: NDArray[np.float64]) -> Track:
    readings = tuple(Reading(watts={"a": 0.75 * watts, "b": 0.25 * watts, "other": 99.0}) for watts in power(t))
    return Track(ABOUT, tuple(t), readings)


def test_power_is_integrated_like_scipy_does_and_near_the_truth() -> None:
    t = instants()
    found = curve(powers(t), ABOUT.total)
    assert found is not None
    whole = (float(t[0]), float(t[-1]))
    assert found.within([whole]) == pytest.approx(trapezoid(power(t), t), rel=1e-12)
    spans = [(3.5, 4.9), (6.0, 6.25), (8.0, 12.0)]
    truth = sum(quad(lambda x: float(power(np.array(x))), *span, points=[4.0], limit=200)[0] for span in spans)
    assert found.within(spans) == pytest.approx(truth, rel=2e-3)
    assert found.method == "trapezoid"
    assert found.rate_hz == pytest.approx(999 / (t[-1] - t[0]))
    assert found.mean_w == pytest.approx(trapezoid(power(t), t) / (t[-1] - t[0]))


def test_counter_goes_before_power_and_its_rate_is_that_of_its_steps() -> None:
    """A counter that moves every tenth look has a tenth of the rate."""
    t = np.arange(0, 10, 0.01)
    counted = 7000 + 30.0 * (np.arange(len(t)) // 10) * 0.1
    readings = tuple(Reading(watts={"a": 500.0}, joules={"a": joules}) for joules in counted)
    found = curve(Track(ABOUT, tuple(t), readings), ("a",))
    assert found is not None
    assert found.method == "counter"
    assert found.rate_hz == pytest.approx(10, rel=0.02)
    assert found.within([(1.0, 9.0)]) == pytest.approx(30 * 8, rel=0.02)


def test_a_span_beyond_the_readings_is_not_held() -> None:
    found = curve(powers(instants()), ("a",))
    assert found is not None
    last = float(found.at_s[-1])
    assert found.holds((3.5, last))
    assert not found.holds((2.0, 4.0))
    assert not found.holds((4.0, last + 0.01))


@pytest.mark.parametrize(
    "readings",
    [
        [],
        [Reading(watts={"a": 5.0})],
        [Reading(watts={"a": 0.0})] * 9,
        [Reading(joules={"a": 12.0})] * 9,
        [Reading(watts={"b": 5.0})] * 9,
    ],
    ids=["nothing", "one", "zero", "counter-stands-still", "another-rail"],
)
def test_rail_that_shows_nothing_has_no_energy(readings: list[Reading]) -> None:
    track = Track(ABOUT, tuple(0.1 * index for index in range(len(readings))), tuple(readings))
    assert curve(track, ("a",)) is None


def test_readings_without_the_rail_are_left_out() -> None:
    readings = [Reading(watts={"a": 10.0}) if index % 2 == 0 else Reading() for index in range(101)]
    found = curve(Track(ABOUT, tuple(0.1 * index for index in range(101)), tuple(readings)), ("a",))
    assert found is not None
    assert found.within([(0.0, 10.0)]) == pytest.approx(100)
