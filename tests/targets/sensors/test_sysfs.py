"""Sensors in /sys are read as the kernel writes them; what is absent, forbidden or gone is told, never read as zero."""

import itertools
import shutil
from pathlib import Path

import pytest
from sensor_trees import MONITOR, alone, orin_nano, write, x86

from edgevlm.targets.sensors.base import SensorError
from edgevlm.targets.sensors.find import open_sources
from edgevlm.targets.sensors.ina3221 import Ina3221
from edgevlm.targets.sensors.linux import Linux
from edgevlm.targets.sensors.rapl import Rapl


def test_hwmon_rails_are_volts_times_amperes(tmp_path: Path) -> None:
    source = Ina3221(orin_nano(tmp_path))
    assert source.sample().watts == {"VDD_IN": 6.0, "VDD_CPU_GPU_CV": 2.0, "VDD_SOC": 1.5}
    assert source.about.total == ("VDD_IN",)
    assert source.sample().throttled == ()
    write(tmp_path, {f"{MONITOR}/hwmon/hwmon1/curr1_crit_alarm": 1})
    assert source.sample().throttled == ("VDD_IN beyond its critical current",)


def test_iio_rails_of_jetpack_4_are_milliwatts_or_their_product(tmp_path: Path) -> None:
    folder = f"{MONITOR}/iio:device0"
    files: dict[str, object] = {f"{MONITOR}/name": "ina3221x"}
    for channel, label in enumerate(("POM_5V_IN", "POM_5V_GPU", "POM_5V_CPU")):
        files[f"{folder}/rail_name_{channel}"] = label
        files[f"{folder}/in_voltage{channel}_input"] = 5000
        files[f"{folder}/in_current{channel}_input"] = 100 * (channel + 1)
        if channel < 2:
            files[f"{folder}/in_power{channel}_input"] = 510 * (channel + 1)
    source = Ina3221(write(tmp_path, files))
    assert source.sample().watts == {"POM_5V_IN": 0.51, "POM_5V_GPU": 1.02, "POM_5V_CPU": 1.5}
    assert source.about.total == ("POM_5V_IN",)


def test_monitor_that_vanishes_is_named(tmp_path: Path) -> None:
    source = Ina3221(orin_nano(tmp_path))
    shutil.rmtree(tmp_path / MONITOR)
    with pytest.raises(SensorError, match=r"in1_input is not there"):
        source.sample()


def test_garbage_in_a_file_is_named(tmp_path: Path) -> None:
    write(orin_nano(tmp_path), {f"{MONITOR}/hwmon/hwmon1/in1_input": "five volts"})
    with pytest.raises(SensorError, match="'five volts' instead of a number") as raised:
        Ina3221(tmp_path)
    assert raised.value.state == "broken"


def test_counters_go_on_where_they_start_again(tmp_path: Path) -> None:
    source = Rapl(x86(tmp_path))
    assert source.about.rails == ("package-0", "package-0/core", "package-0/dram", "psys")
    assert source.about.total == ("package-0", "package-0/dram")
    counter = "sys/class/powercap/intel-rapl:0/energy_uj"
    seen = []
    for value in (262_143_000_000, 500_000, 262_143_100_000, 700_000):
        write(tmp_path, {counter: value})
        seen.append(source.sample().joules["package-0"])
    steps = [later - before for before, later in itertools.pairwise(seen)]
    assert steps == pytest.approx([0.82885, 262142.6, 0.92885])


def test_forbidden_counters_are_told_with_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The refusal is injected, as root may read everything."""
    real = Path.read_text

    def refused(path: Path, *arguments: str, **named: str) -> str:
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied")
        return real(path, *arguments, **named)

    monkeypatch.setattr(Path, "read_text", refused)
    alone(monkeypatch, tmp_path)
    _, found = open_sources(x86(tmp_path))
    (rapl,) = (each for each in found if each.name == "rapl")
    assert (rapl.state, rapl.about) == ("forbidden", None)
    assert "root only" in rapl.reason
    assert "chmod" in rapl.hint


def test_plain_linux_shows_heat_clocks_and_throttling(tmp_path: Path) -> None:
    thermal, cpus = "sys/class/thermal", "sys/devices/system/cpu"
    write(
        tmp_path,
        {
            f"{thermal}/thermal_zone0/type": "cpu-thermal",
            f"{thermal}/thermal_zone0/temp": 48906,
            f"{thermal}/thermal_zone1/type": "cv0-thermal",
            f"{thermal}/thermal_zone1/temp": -256000,
            f"{thermal}/thermal_zone2/type": "PMIC-Die",
            f"{thermal}/thermal_zone2/temp": 100000,
            f"{thermal}/cooling_device0/type": "pwm-fan",
            f"{thermal}/cooling_device0/cur_state": 3,
            f"{thermal}/cooling_device1/type": "thermal-cpufreq-0",
            f"{thermal}/cooling_device1/cur_state": 0,
            f"{cpus}/cpufreq/policy0/scaling_cur_freq": 1510400,
            f"{cpus}/cpufreq/policy0/cpuinfo_max_freq": 1728000,
            f"{cpus}/cpufreq/policy4/scaling_cur_freq": 1728000,
            f"{cpus}/cpufreq/policy4/cpuinfo_max_freq": 1728000,
            f"{cpus}/cpu0/thermal_throttle/package_throttle_count": 7,
            "sys/class/devfreq/17000000.gpu/cur_freq": 1020000000,
        },
    )
    source = Linux(tmp_path)
    first = source.sample()
    assert first.celsius == {"cpu-thermal": 48.906}
    assert first.megahertz == {"cpu": 1728.0, "17000000.gpu": 1020.0}
    assert first.throttled == ()
    assert first.watts == first.joules == {}
    counter, brake = f"{cpus}/cpu0/thermal_throttle/package_throttle_count", f"{thermal}/cooling_device1/cur_state"
    write(tmp_path, {counter: 9, brake: 2})
    assert source.sample().throttled == ("thermal throttling counted by the processor", "thermal-cpufreq-0 cools")
    assert source.sample().throttled == ("thermal-cpufreq-0 cools",)


def test_clusters_of_cores_are_told_apart(tmp_path: Path) -> None:
    cpus = "sys/devices/system/cpu/cpufreq"
    for policy, (now, top) in enumerate(((1800000, 1800000), (600000, 2256000), (2256000, 2256000))):
        write(
            tmp_path, {f"{cpus}/policy{policy}/scaling_cur_freq": now, f"{cpus}/policy{policy}/cpuinfo_max_freq": top}
        )
    assert Linux(tmp_path).sample().megahertz == {"cpu up to 1800 MHz": 1800.0, "cpu up to 2256 MHz": 2256.0}


def test_machine_without_sensors_has_reasons_and_no_readings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone(monkeypatch, tmp_path)
    sources, found = open_sources(tmp_path)
    assert sources == []
    assert {each.state for each in found} == {"absent"}
    assert all(each.reason for each in found)


def test_sources_of_the_same_chips_are_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone(monkeypatch, tmp_path)
    _, found = open_sources(orin_nano(tmp_path))
    states = {each.name: each.state for each in found}
    assert (states["ina3221"], states["tegrastats"], states["jtop"]) == ("ok", "unneeded", "unneeded")
