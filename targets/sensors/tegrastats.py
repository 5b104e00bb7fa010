"""Runs NVIDIA's `tegrastats` and reads its lines: rails in milliwatts, temperatures, clocks.

The format has changed with every JetPack: units came in 5, a third power field and a second temperature in 7.2, and
Thor shows clocks of its GPU without a load. The first figure of a field is the present one, the others are averages.
"""

from __future__ import annotations

import os
import re
import selectors
import shutil
import subprocess
from typing import IO

from edgevlm.targets.sensors.base import About, Reading, SensorError
from edgevlm.targets.sensors.rails import covers, total_rails

_SILENCE_S = 3.0
_INTERVAL_MS = 100
_LONGEST_LINE = 1 << 16
#: A rail; `RAM 519/7607MB` has another unit, and is none.
_POWER = re.compile(r"(?<!\S)([A-Z][A-Z0-9_]*) (\d+)(?:mW)?(?:/\d+(?:mW)?){1,2}(?!\S)")
_TEMPERATURE = re.compile(r"(?<!\S)([A-Za-z][\w-]*)@(-?\d+(?:\.\d+)?)C(?:/-?\d+(?:\.\d+)?C)?(?!\S)")
_CLOCK = re.compile(r"(?<!\S)(EMC_FREQ|GR3D_FREQ) (?:\d+%)?@\[?(\d+(?:,\d+)*)\]?(?!\S)")
_CPU = re.compile(r"(?<!\S)CPU \[([^\]]*)\]")
#: What an offline zone reads.
_OFFLINE_C = -200.0


def parse_line(line: str) -> Reading:
    """What one line says; an empty reading for a line that is none of tegrastats'.

    Watts, degrees Celsius and MHz; of a clock with several domains, and of the cores, the fastest.
    """
    megahertz = {
        {"EMC_FREQ": "memory", "GR3D_FREQ": "gpu"}[name]: float(max(int(value) for value in values.split(",")))
        for name, values in _CLOCK.findall(line)
    }
    cores = _CPU.search(line)
    clocks = [int(core.partition("@")[2]) for core in cores[1].split(",") if "@" in core] if cores else []
    if clocks:
        megahertz["cpu"] = float(max(clocks))
    return Reading(
        watts={name: int(milliwatts) / 1e3 for name, milliwatts in _POWER.findall(line)},
        # PMIC's zone is a constant, not a measurement.
        celsius={
            name: float(value)
            for name, value in _TEMPERATURE.findall(line)
            if float(value) > _OFFLINE_C and not name.startswith("PMIC")
        },
        megahertz=megahertz,
    )


class Tegrastats:
    """A running `tegrastats`."""

    def __init__(self) -> None:
        """Start it and read its first line.

        Raises:
            SensorError: it is not here, does not run, or its lines show no power.
        """
        program = shutil.which("tegrastats")
        if program is None:
            raise SensorError("tegrastats is not installed", "", "absent")
        try:
            self._process = subprocess.Popen(
                [program, "--interval", str(_INTERVAL_MS)],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
            )
        except OSError as error:
            raise SensorError(f"tegrastats does not start: {error.strerror}", program, "broken") from error
        assert self._process.stdout is not None
        self._output: IO[bytes] = self._process.stdout
        self._rest = b""
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._output, selectors.EVENT_READ)
        try:
            names = tuple(self.sample().watts)
            if not names:
                raise SensorError("tegrastats shows no power rails", program, "forbidden", "run it as root")
        except SensorError:
            self.close()
            raise
        self.about = About("tegrastats", covers(names), names, total_rails(names), 0.0)

    def sample(self) -> Reading:
        """What the next line says; the last one, where several have been written meanwhile."""
        lines: list[bytes] = []
        while not lines:
            if not self._selector.select(_SILENCE_S):
                raise SensorError(f"tegrastats wrote nothing for {_SILENCE_S:g} s", "", "broken")
            chunk = os.read(self._output.fileno(), 1 << 16)
            if not chunk:
                raise SensorError("tegrastats has ended", "", "broken")
            *lines, self._rest = (self._rest + chunk).split(b"\n")
            if len(self._rest) > _LONGEST_LINE:
                raise SensorError("tegrastats writes no lines", "", "broken")
        return parse_line(lines[-1].decode("utf-8", "replace"))

    def close(self) -> None:
        """Stop the program."""
        self._selector.close()
        self._process.kill()
        self._process.wait()
        self._output.close()
