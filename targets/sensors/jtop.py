"""Reads what jtop (jetson-stats) offers, where its service runs and its Python package is installed.

It is under the AGPL, so it is used where the owner of the board installed it, and is no part of EdgeVLM.
"""

from __future__ import annotations

import importlib
from typing import Any

from edgevlm.targets.sensors.base import About, Reading, SensorError
from edgevlm.targets.sensors.rails import covers, total_rails

_INTERVAL_S = 0.5
#: The name of jtop's own total, where no rail of the board measures it.
TOTAL = "total"


class Jtop:
    """A connection to jtop's service."""

    def __init__(self) -> None:
        """Connect and look once.

        Raises:
            SensorError: the package is not installed, the service does not answer, or it shows no power.
        """
        try:
            module = importlib.import_module("jtop")
        except ImportError as error:
            raise SensorError("jetson-stats is not installed", "", "absent") from error
        try:
            self._jtop: Any = module.jtop(interval=_INTERVAL_S)
            self._jtop.start()
        except PermissionError as error:
            hint = "add the user to the group jtop"
            raise SensorError("jtop's service may not be used by this user", "", "forbidden", hint) from error
        except Exception as error:
            raise SensorError(f"jtop's service does not answer: {error}", "", "broken") from error
        try:
            names = tuple(self.sample().watts)
            if not names:
                raise SensorError("jtop shows no power rails", "", "absent")
        except SensorError:
            self.close()
            raise
        total = (TOTAL,) if TOTAL in names else total_rails(names)
        said = "what jtop takes for the whole board" if TOTAL in names else covers(names)
        self.about = About("jtop", said, names, total, 0.0)

    def sample(self) -> Reading:
        """What the service measured last; waits until it has something new."""
        try:
            if not self._jtop.ok():
                raise SensorError("jtop's service has ended", "", "broken")
            power, heat, graphics = self._jtop.power, self._jtop.temperature, self._jtop.gpu
        except SensorError:
            raise
        except Exception as error:
            raise SensorError(f"jtop failed: {error}", "", "broken") from error
        watts = {name: rail["power"] / 1e3 for name, rail in power["rail"].items() if rail.get("online", True)}
        if power.get("tot", {}).get("power") is not None:
            watts[TOTAL] = power["tot"]["power"] / 1e3
        return Reading(
            watts=watts,
            celsius={name: float(zone["temp"]) for name, zone in heat.items() if zone.get("online", True)},
            megahertz={name: gpu["freq"]["cur"] / 1e3 for name, gpu in graphics.items() if "cur" in gpu["freq"]},
        )

    def close(self) -> None:
        """Disconnect."""
        self._jtop.close()
