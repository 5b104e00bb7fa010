"""Reads the one-line files of /sys and /proc, and says what it means where that fails."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from edgevlm.targets.sensors.base import SensorError


def read_text(file: Path) -> str:
    """The stripped text of a small file.

    Raises:
        SensorError: it is not there, may not be read, or the driver refuses.
    """
    try:
        return file.read_text(encoding="utf-8", errors="replace").strip()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise SensorError(f"{file.name} is not there", str(file), "absent") from error
    except PermissionError as error:
        raise SensorError(f"{file.name} may not be read by this user", str(file), "forbidden") from error
    except OSError as error:
        raise SensorError(f"{file.name} cannot be read: {error.strerror}", str(file), "broken") from error


def read_int(file: Path) -> int:
    """The whole number that a file holds.

    Raises:
        SensorError: as for `read_text`, or it is no number.
    """
    text = read_text(file)
    try:
        return int(text)
    except ValueError as error:
        raise SensorError(f"{file.name} holds {text!r:.40} instead of a number", str(file), "broken") from error


def text_or_none(file: Path) -> str | None:
    """The text of a file; None where it cannot be read."""
    try:
        return read_text(file)
    except SensorError:
        return None


def int_or_none(file: Path) -> int | None:
    """The number in a file; None where it cannot be read or is none."""
    try:
        return read_int(file)
    except SensorError:
        return None


def numbered(names: Iterable[str]) -> list[str]:
    """The names, told apart by a number behind those that were given before: `cpu`, `cpu-2`."""
    seen: dict[str, int] = {}
    found = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        found.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return found
