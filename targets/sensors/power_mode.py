"""The power mode of a Jetson, as `nvpmodel -q` tells it."""

from __future__ import annotations

import re
import shutil
import subprocess

_TIMEOUT_S = 5.0
_NAME = re.compile(r"NV Power Mode:[ \t]*(\S+)")
_NUMBER = re.compile(r"^\s*(\d+)\s*$", re.MULTILINE)


def parse_nvpmodel(text: str) -> str | None:
    """`MAXN_SUPER (2)` from the output of `nvpmodel -q`; None where it names no mode."""
    name, number = _NAME.search(text), _NUMBER.search(text)
    if name is None:
        return None
    return f"{name[1]} ({number[1]})" if number is not None else name[1]


def power_mode() -> str | None:
    """The mode that is set; None on boards without modes, and where `nvpmodel` does not answer."""
    program = shutil.which("nvpmodel")
    if program is None:
        return None
    try:
        run = subprocess.run([program, "-q"], capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_S)
    except (OSError, subprocess.SubprocessError):
        return None
    return parse_nvpmodel(run.stdout)
