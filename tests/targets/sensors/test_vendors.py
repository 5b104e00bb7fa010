"""NVML, jtop and vcgencmd are used as their makers document them, with fakes of the same interface."""

import stat
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from sensor_trees import write

from edgevlm.targets.sensors.base import SensorError
from edgevlm.targets.sensors.jtop import Jtop
from edgevlm.targets.sensors.nvml import _REASONS, Nvml
from edgevlm.targets.sensors.vcgencmd import Vcgencmd, parse_adc, parse_throttled


class NvmlError(Exception):
    def __init__(self, value: int) -> None:
        super().__init__(f"code {value}")
        self.value = value


class FakeNvml(ModuleType):
    """One GPU whose counter and power can be set, or be refused with a code."""

    NVMLError = NvmlError
    NVML_ERROR_NO_PERMISSION = 4
    NVML_ERROR_DRIVER_NOT_LOADED = 9
    NVML_ERROR_LIBRARY_NOT_FOUND = 12
    NVML_TEMPERATURE_GPU = 0
    NVML_CLOCK_SM = 1
    NVML_FI_DEV_POWER_INSTANT = 186
    nvmlClocksThrottleReasonSwPowerCap = 0x4  # noqa: N815 (NVML's own names)
    nvmlClocksThrottleReasonHwSlowdown = 0x8  # noqa: N815
    nvmlClocksThrottleReasonSwThermalSlowdown = 0x20  # noqa: N815
    nvmlClocksThrottleReasonHwThermalSlowdown = 0x40  # noqa: N815
    nvmlClocksThrottleReasonHwPowerBrakeSlowdown = 0x80  # noqa: N815

    def __init__(self) -> None:
        super().__init__("pynvml")
        self.init_error = 0
        self.millijoules: int | None = 5_000_000
        self.instant: int | None = 61_000
        self.average: int | None = 55_000
        self.reasons = 0x1

    def nvmlInit(self) -> None:  # noqa: N802
        if self.init_error:
            raise NvmlError(self.init_error)

    def nvmlShutdown(self) -> None:  # noqa: N802
        pass

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:  # noqa: N802
        return f"handle {index}"

    def nvmlDeviceGetName(self, _handle: str) -> str:  # noqa: N802
        return "NVIDIA Test"

    def nvmlDeviceGetTotalEnergyConsumption(self, _handle: str) -> int:  # noqa: N802
        return self._given(self.millijoules)

    def nvmlDeviceGetPowerUsage(self, _handle: str) -> int:  # noqa: N802
        return self._given(self.average)

    def nvmlDeviceGetFieldValues(self, _handle: str, fields: list[int]) -> list[Any]:  # noqa: N802
        assert fields == [self.NVML_FI_DEV_POWER_INSTANT]
        return [SimpleNamespace(nvmlReturn=3 * (self.instant is None), value=SimpleNamespace(uiVal=self.instant))]

    def nvmlDeviceGetTemperature(self, _handle: str, _sensor: int) -> int:  # noqa: N802
        return 41

    def nvmlDeviceGetClockInfo(self, _handle: str, _clock: int) -> int:  # noqa: N802
        return 1980

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, _handle: str) -> int:  # noqa: N802
        return self.reasons

    def _given(self, value: int | None) -> int:
        if value is None:
            raise NvmlError(3)
        return value


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    module = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", module)
    return module


def test_gpu_counts_energy_and_shows_power_of_the_moment(nvml: FakeNvml) -> None:
    source = Nvml(Path("/"))
    reading = source.sample()
    assert (reading.joules, reading.watts) == ({"gpu0": 5000.0}, {"gpu0": 61.0})
    assert (reading.celsius, reading.megahertz, reading.throttled) == ({"gpu0": 41.0}, {"gpu0": 1980.0}, ())
    nvml.reasons = 0x4 | 0x40
    assert source.sample().throttled == ("gpu0: power cap", "gpu0: thermal slowdown by the hardware")
    assert "NVIDIA Test" in source.about.covers


def test_power_stands_in_for_a_counter_that_is_not_there(nvml: FakeNvml) -> None:
    nvml.millijoules = nvml.instant = None
    reading = Nvml(Path("/")).sample()
    assert (reading.joules, reading.watts) == ({}, {"gpu0": 55.0})


def test_counter_that_starts_anew_ends_the_reading(nvml: FakeNvml) -> None:
    source = Nvml(Path("/"))
    source.sample()
    nvml.millijoules = 12
    with pytest.raises(SensorError, match="started anew"):
        source.sample()


@pytest.mark.parametrize(("code", "state"), [(9, "absent"), (12, "absent"), (4, "forbidden"), (999, "broken")])
def test_why_there_is_no_gpu(nvml: FakeNvml, code: int, state: str) -> None:
    nvml.init_error = code
    with pytest.raises(SensorError) as raised:
        Nvml(Path("/"))
    assert raised.value.state == state


def test_gpu_without_any_power_is_absent_not_zero(nvml: FakeNvml) -> None:
    """So it is on a Jetson Orin."""
    nvml.millijoules = nvml.instant = nvml.average = None
    with pytest.raises(SensorError, match="neither power nor energy") as raised:
        Nvml(Path("/"))
    assert raised.value.state == "absent"


@pytest.mark.parametrize(("driver", "state"), [(True, "broken"), (False, "absent")])
def test_missing_package_is_a_fault_only_where_there_is_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, driver: bool, state: str
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    if driver:
        write(tmp_path, {"proc/driver/nvidia/version": "NVRM version: 580"})
    with pytest.raises(SensorError, match="nvidia-ml-py is not installed") as raised:
        Nvml(tmp_path)
    assert raised.value.state == state
    assert "edgevlm[nvidia]" in raised.value.hint


def test_fake_has_the_interface_of_nvidias_package() -> None:
    real = pytest.importorskip("pynvml")
    for name in (name for name in dir(FakeNvml) if name.startswith(("nvml", "NVML"))):
        expected = getattr(FakeNvml, name)
        assert hasattr(real, name)
        assert not isinstance(expected, int) or getattr(real, name) == expected
    assert all(hasattr(real, f"nvmlClocksThrottleReason{name}") for name in _REASONS)
    assert hasattr(real.c_nvmlFieldValue_t, "nvmlReturn")
    assert hasattr(real.c_nvmlValue_t, "uiVal")


class FakeJtop(ModuleType):
    """jetson-stats with one board, as its documentation describes `power`, `temperature` and `gpu`."""

    def __init__(self, **changes: Any) -> None:
        super().__init__("jtop")
        board: dict[str, Any] = {
            "start": lambda: None,
            "close": lambda: None,
            "ok": lambda: True,
            "power": {
                "rail": {
                    "VDD_CPU_GPU_CV": {"volt": 5000, "curr": 400, "power": 2000, "avg": 1900, "online": True},
                    "VDD_OFF": {"volt": 0, "curr": 0, "power": 0, "avg": 0, "online": False},
                },
                "tot": {"volt": 5000, "curr": 1200, "power": 6000, "avg": 5900, "name": "VDD_IN"},
            },
            "temperature": {"cpu": {"temp": 48.9, "online": True}, "cv0": {"temp": -256, "online": False}},
            "gpu": {"ga10b": {"freq": {"cur": 1020000, "max": 1020000}, "status": {"load": 0.0}}},
            **changes,
        }
        self.jtop = lambda interval: SimpleNamespace(**board, interval=interval)


def test_jtop_offers_the_boards_total(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jtop", FakeJtop())
    source = Jtop()
    reading = source.sample()
    assert reading.watts == {"VDD_CPU_GPU_CV": 2.0, "total": 6.0}
    assert (reading.celsius, reading.megahertz) == ({"cpu": 48.9}, {"ga10b": 1020.0})
    assert source.about.total == ("total",)


def test_jtop_without_its_service_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> None:
        raise RuntimeError("The jtop.service is not active")

    monkeypatch.setitem(sys.modules, "jtop", FakeJtop(start=refused))
    with pytest.raises(SensorError, match=r"jtop.service is not active"):
        Jtop()
    monkeypatch.setitem(sys.modules, "jtop", FakeJtop(ok=lambda: False))
    with pytest.raises(SensorError, match="has ended"):
        Jtop()
    monkeypatch.setitem(sys.modules, "jtop", None)
    with pytest.raises(SensorError) as raised:
        Jtop()
    assert raised.value.state == "absent"


ADC = """ 3V7_WL_SW_A current(0)=0.00780676A
   VDD_CORE_A current(7)=2.50000000A
   3V7_WL_SW_V volt(8)=3.70000000V
   VDD_CORE_V volt(15)=0.80000000V
      EXT5V_V volt(24)=5.10000000V
       BATT_V volt(25)=0.00000000V
"""


def pi(folder: Path, monkeypatch: pytest.MonkeyPatch, adc: str, throttled: str = "throttled=0x0") -> None:
    """A firmware that answers the two questions."""
    (folder / "adc").write_text(adc, encoding="utf-8")
    program = folder / "vcgencmd"
    program.write_text(
        f"#!/bin/sh\ncase $1 in pmic_read_adc) cat {folder}/adc;; *) echo '{throttled}';; esac\n", encoding="utf-8"
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_pi_5_sums_rails_that_have_volts_and_amperes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pi(tmp_path, monkeypatch, ADC, "throttled=0x50005")
    source = Vcgencmd()
    reading = source.sample()
    assert reading.watts == pytest.approx({"3V7_WL_SW": 0.00780676 * 3.7, "VDD_CORE": 2.0})
    assert reading.throttled == ("under-voltage", "throttled")
    assert source.about.total == ("3V7_WL_SW", "VDD_CORE")
    assert "without USB" in source.about.covers


def test_pi_4_has_no_power_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pi(tmp_path, monkeypatch, 'error=1 error_msg="Command not registered"')
    source = Vcgencmd()
    assert (source.about.rails, source.sample().watts) == ((), {})


def test_firmware_that_refuses_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pi(tmp_path, monkeypatch, "", "throttled=0x0")
    (tmp_path / "vcgencmd").write_text("#!/bin/sh\necho 'VCHI initialization failed' >&2; exit 255\n")
    with pytest.raises(SensorError) as raised:
        Vcgencmd()
    assert raised.value.state == "forbidden"


def test_past_throttling_is_not_throttling_now() -> None:
    assert parse_throttled("throttled=0x50000") == ()
    assert parse_adc("nonsense") == {}
