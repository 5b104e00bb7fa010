"""Reads NVIDIA GPUs through NVML: the energy counter, power, temperature, clocks, and why clocks are held back.

The counter (Volta and later) is what energy is taken from. `nvmlDeviceGetPowerUsage` is an average over a second on
Ampere and later, so the instantaneous field is read where the driver has it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgevlm.targets.sensors.base import About, Reading, SensorError

_INTERVAL_S = 0.1
#: Names of NVML's bits, and what they say; idleness and clocks that somebody set are no throttling.
_REASONS = {
    "SwPowerCap": "power cap",
    "HwSlowdown": "hardware slowdown",
    "SwThermalSlowdown": "thermal slowdown by the driver",
    "HwThermalSlowdown": "thermal slowdown by the hardware",
    "HwPowerBrakeSlowdown": "power brake",
}


@dataclass(frozen=True)
class _Gpu:
    """One GPU: how it is called, and what its driver lets read."""

    rail: str
    name: str
    handle: Any
    counts: bool
    power: Callable[[Any], float] | None


class Nvml:
    """All GPUs of this machine."""

    def __init__(self, root: Path) -> None:
        """Find the GPUs and what can be read of each; `root` is where /proc tells of a driver.

        Raises:
            SensorError: there is no NVML, no driver or no GPU, or none whose power or energy can be read.
        """
        try:
            self._nvml: Any = importlib.import_module("pynvml")
        except ImportError as error:
            what, hint = "nvidia-ml-py is not installed", "pip install 'edgevlm[nvidia]'"
            if (root / "proc/driver/nvidia/version").is_file():
                raise SensorError(f"{what}, though there is an NVIDIA driver", "", "broken", hint) from error
            raise SensorError(what, "", "absent", hint) from error
        try:
            self._nvml.nvmlInit()
            handles = [self._nvml.nvmlDeviceGetHandleByIndex(index) for index in range(self._nvml.nvmlDeviceGetCount())]
        except self._nvml.NVMLError as error:
            raise self._trouble(error) from error
        if not handles:
            raise SensorError("no NVIDIA GPU", "", "absent")
        self._gpus = [self._examine(index, handle) for index, handle in enumerate(handles)]
        self._last: dict[str, float] = {}
        rails = tuple(gpu.rail for gpu in self._gpus if gpu.counts or gpu.power)
        if not rails:
            self.close()
            raise SensorError("the driver shows neither power nor energy of this GPU", "", "absent")
        boards = ", ".join(f"{gpu.rail} {gpu.name}" for gpu in self._gpus)
        self.about = About("nvml", f"GPU boards ({boards}), without the host", rails, rails, _INTERVAL_S)

    def sample(self) -> Reading:
        """Power, energy, temperature and clocks of every GPU."""
        watts, joules, celsius, megahertz = {}, {}, {}, {}
        throttled: list[str] = []
        for gpu in self._gpus:
            try:
                if gpu.power is not None:
                    watts[gpu.rail] = gpu.power(gpu.handle)
                if gpu.counts:
                    joules[gpu.rail] = self._joules(gpu)
                celsius[gpu.rail] = float(
                    self._nvml.nvmlDeviceGetTemperature(gpu.handle, self._nvml.NVML_TEMPERATURE_GPU)
                )
                megahertz[gpu.rail] = float(self._nvml.nvmlDeviceGetClockInfo(gpu.handle, self._nvml.NVML_CLOCK_SM))
                throttled += [f"{gpu.rail}: {reason}" for reason in self._reasons(gpu.handle)]
            except self._nvml.NVMLError as error:
                raise self._trouble(error) from error
        return Reading(watts, joules, celsius, megahertz, tuple(throttled))

    def close(self) -> None:
        """Leave NVML."""
        self._nvml.nvmlShutdown()

    def _examine(self, index: int, handle: Any) -> _Gpu:
        name = self._nvml.nvmlDeviceGetName(handle)
        counts = self._supported(self._nvml.nvmlDeviceGetTotalEnergyConsumption, handle)
        power = next((read for read in (self._instant, self._average) if self._supported(read, handle)), None)
        return _Gpu(f"gpu{index}", name if isinstance(name, str) else name.decode(), handle, counts, power)

    def _supported(self, read: Callable[[Any], object], handle: Any) -> bool:
        try:
            read(handle)
        except self._nvml.NVMLError:
            return False
        return True

    def _joules(self, gpu: _Gpu) -> float:
        """Energy since the driver was loaded; if that happens anew, what was counted before is lost."""
        now = float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(gpu.handle)) / 1e3
        if now < self._last.get(gpu.rail, 0.0):
            raise SensorError(f"the energy counter of {gpu.rail} started anew", "", "broken")
        self._last[gpu.rail] = now
        return now

    def _instant(self, handle: Any) -> float:
        (value,) = self._nvml.nvmlDeviceGetFieldValues(handle, [self._nvml.NVML_FI_DEV_POWER_INSTANT])
        if value.nvmlReturn != 0:
            raise self._nvml.NVMLError(value.nvmlReturn)
        return float(value.value.uiVal) / 1e3

    def _average(self, handle: Any) -> float:
        return float(self._nvml.nvmlDeviceGetPowerUsage(handle)) / 1e3

    def _reasons(self, handle: Any) -> list[str]:
        """Why clocks are held back; empty where the driver does not tell."""
        try:
            bits = self._nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)
        except self._nvml.NVMLError:
            return []
        names = {name: getattr(self._nvml, f"nvmlClocksThrottleReason{name}") for name in _REASONS}
        return [_REASONS[name] for name, bit in names.items() if bits & bit]

    def _trouble(self, error: Any) -> SensorError:
        """NVML's error as one of ours."""
        code = getattr(error, "value", None)
        if code in (self._nvml.NVML_ERROR_LIBRARY_NOT_FOUND, self._nvml.NVML_ERROR_DRIVER_NOT_LOADED):
            return SensorError("no NVIDIA driver", "", "absent")
        if code == self._nvml.NVML_ERROR_NO_PERMISSION:
            return SensorError("NVML may not be used by this user", "", "forbidden")
        return SensorError(f"NVML: {error}", "", "broken")
