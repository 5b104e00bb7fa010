"""Sampling goes on beside other work, which goes on whatever becomes of a sensor or of the sampling process."""

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sensor_trees import MONITOR, alone, orin_nano, write, x86

from edgevlm.targets.sensors.energy import curve
from edgevlm.targets.sensors.log import SensorLog, Track


@pytest.fixture(autouse=True)
def no_tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what the test's tree has."""
    alone(monkeypatch, tmp_path)


def until(condition: Callable[[], bool]) -> None:
    """Wait for it; a minute at most."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        threading.Event().wait(0.01)


def track(log: SensorLog, name: str) -> Track:
    return next(each for each in log.tracks() if each.about.name == name)


def test_power_of_a_board_becomes_energy(tmp_path: Path) -> None:
    with SensorLog(orin_nano(tmp_path)) as log:
        assert log.measures_power
        until(lambda: len(track(log, "ina3221").readings) >= 4)
        seen = track(log, "ina3221")
    found = curve(seen, seen.about.total)
    assert found is not None
    assert found.mean_w == pytest.approx(6.0)
    assert abs(seen.at_s[0] - time.monotonic()) < 120
    assert list(seen.at_s) == sorted(seen.at_s)


def test_forgotten_readings_do_not_come_back(tmp_path: Path) -> None:
    with SensorLog(orin_nano(tmp_path)) as log:
        until(lambda: len(track(log, "ina3221").readings) >= 2)
        before = track(log, "ina3221").at_s[-1]
        log.clear()
        until(lambda: len(track(log, "ina3221").readings) >= 1)
        assert track(log, "ina3221").at_s[0] > before


def test_sensor_that_vanishes_ends_with_a_reason_and_the_others_go_on(tmp_path: Path) -> None:
    with SensorLog(x86(orin_nano(tmp_path))) as log:
        until(lambda: len(track(log, "ina3221").readings) >= 2)
        shutil.rmtree(tmp_path / MONITOR)
        until(lambda: bool(track(log, "ina3221").ended))
        taken = len(track(log, "rapl").readings)
        until(lambda: len(track(log, "rapl").readings) > taken)
        assert track(log, "ina3221").ended == "in1_input is not there"
        assert track(log, "ina3221").readings
        assert track(log, "rapl").ended == ""
        assert log.measures_power


def test_counter_in_a_file_is_followed(tmp_path: Path) -> None:
    counter = "sys/class/powercap/intel-rapl:0/energy_uj"
    with SensorLog(x86(tmp_path)) as log:
        until(lambda: len(track(log, "rapl").readings) >= 2)
        write(tmp_path, {counter: 4_000_000})
        until(lambda: track(log, "rapl").readings[-1].joules["package-0"] == 4.0)
        seen = track(log, "rapl")
    found = curve(seen, seen.about.total)
    assert found is not None
    assert found.within([(seen.at_s[0], seen.at_s[-1])]) == pytest.approx(3.0)


def test_machine_without_sensors_costs_nothing_and_says_why(tmp_path: Path) -> None:
    with SensorLog(tmp_path) as log:
        assert not log.measures_power
    assert {each.name: each.state for each in log.found}["ina3221"] == "absent"


@pytest.mark.parametrize("fault", ["segfault_whatever", "refuse_whatever"])
def test_sampling_process_that_fails_is_a_reason(fault: str) -> None:
    with SensorLog(target=f"child_targets:{fault}") as log:
        assert log.tracks() == []
    (found,) = log.found
    assert found.state == "broken"
    assert found.reason.startswith("the sampling process failed: ")
