"""Asks the firmware of a Raspberry Pi: power of the rails behind the PMIC (Pi 5), and whether it slows the cores down.

`vcgencmd pmic_read_adc` lists volts and amperes of the PMIC's outputs. The current of the 5 V input is not measured, so
USB devices, HATs and the PMIC's own loss are left out of the sum.
"""

from __future__ import annotations

import re
import shutil
import subprocess

from edgevlm.targets.sensors.base import About, Reading, SensorError

_TIMEOUT_S = 2.0
_LINE = re.compile(r"^\s*(\w+)_([AV]) \w+\(\d+\)=(-?\d+(?:\.\d+)?)[AV]\s*$")
_THROTTLED = re.compile(r"throttled=(0x[0-9a-fA-F]+)")
#: Bits of `get_throttled` that speak of this moment.
_REASONS = {0: "under-voltage", 1: "clocks capped", 2: "throttled", 3: "soft temperature limit"}


def parse_adc(text: str) -> dict[str, float]:
    """Watts of each rail with both a current and a voltage in the output of `pmic_read_adc`."""
    values: dict[str, dict[str, float]] = {"A": {}, "V": {}}
    for line in text.splitlines():
        found = _LINE.match(line)
        if found:
            values[found[2]][found[1]] = float(found[3])
    return {name: values["V"][name] * ampere for name, ampere in values["A"].items() if name in values["V"]}


def parse_throttled(text: str) -> tuple[str, ...]:
    """Why cores are slowed down at this moment, from the output of `get_throttled`."""
    found = _THROTTLED.search(text)
    bits = int(found[1], 16) if found else 0
    return tuple(reason for bit, reason in _REASONS.items() if bits >> bit & 1)


class Vcgencmd:
    """The firmware's mailbox."""

    def __init__(self) -> None:
        """Look once.

        Raises:
            SensorError: this is no Raspberry Pi, or the user may not ask the firmware.
        """
        program = shutil.which("vcgencmd")
        if program is None:
            raise SensorError("vcgencmd is not installed: no Raspberry Pi", "", "absent")
        self._program = program
        self._ask("get_throttled")
        rails = tuple(parse_adc(self._ask("pmic_read_adc", may_fail=True)))
        said = "the outputs of the PMIC, without USB, HATs and the PMIC's own loss" if rails else ""
        self.about = About("vcgencmd", said, rails, rails, 0.25 if rails else 1.0)

    def sample(self) -> Reading:
        """Watts of the rails, where the board measures them, and what slows it down."""
        watts = parse_adc(self._ask("pmic_read_adc")) if self.about.rails else {}
        return Reading(watts=watts, throttled=parse_throttled(self._ask("get_throttled")))

    def close(self) -> None:
        """Nothing is held."""

    def _ask(self, command: str, *, may_fail: bool = False) -> str:
        """What the firmware answers; empty where it may refuse the command, as boards before the Pi 5 do."""
        try:
            run = subprocess.run(
                [self._program, command], capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_S
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise SensorError(f"vcgencmd {command} does not answer", self._program, "broken") from error
        said = (run.stdout + run.stderr).strip()
        if run.returncode == 0 and not said.startswith("error"):
            return said
        if may_fail:
            return ""
        if "permission" in said.lower() or "VCHI" in said:
            raise SensorError(
                "vcgencmd may not be used by this user", self._program, "forbidden", "add the user to the group video"
            )
        raise SensorError(
            f"vcgencmd {command} failed: {said.splitlines()[0] if said else run.returncode}", "", "broken"
        )
