"""Reads reports from files: those of this version of the format and of every earlier one, and says why not the others.

Version 1 is the first. Fields that were added to it since have defaults, so a report of version 1 is read whatever its
age. A report of a newer version is refused, for its figures may mean something else.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pydantic import ValidationError

from edgevlm.bench.job import Prediction
from edgevlm.bench.predictions import read_jsonl
from edgevlm.bench.report import SCHEMA_VERSION, Accuracy, Report
from edgevlm.errors import InputError

#: A report of 200 rows with 1000 samples each has about 120 MB.
MAX_BYTES = 1 << 30
_HINT = "give a report.json that edgevlm bench or edgevlm study wrote"


@dataclass(frozen=True)
class ReadReport:
    """A report and the file that it came from."""

    path: Path
    sha256: str
    report: Report


def read_report(path: Path) -> ReadReport:
    """The report in `path`: a report.json, or the folder that holds one.

    Raises:
        InputError: there is none, it is damaged, or it was written in a newer version of the format.
    """
    file = path / "report.json" if path.is_dir() else path
    try:
        if file.stat().st_size > MAX_BYTES:
            raise InputError(f"larger than {MAX_BYTES >> 20} MiB", str(file), _HINT)
        content = file.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read the report: {error.strerror}", str(file), _HINT) from error
    try:
        report = Report.model_validate_json(content)
    except ValidationError as error:
        _check_version(content, file)
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise InputError(f"not a report: {place}: {first['msg']}", str(file), _HINT) from error
    return ReadReport(file, hashlib.sha256(content).hexdigest(), report)


def _check_version(content: bytes, file: Path) -> None:
    """Say of what is no report of this version whether it is one of a newer one, or none at all."""
    try:
        data = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError("not JSON", str(file), _HINT) from error
    version = data.get("schema_version") if isinstance(data, dict) else None
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise InputError("not a report: it has no schema_version", str(file), _HINT)
    if version > SCHEMA_VERSION:
        raise InputError(
            f"written in version {version} of the format; this EdgeVLM reads up to {SCHEMA_VERSION}",
            str(file),
            "update EdgeVLM",
        )


def read_predictions(report: Path, accuracy: Accuracy) -> list[Prediction] | str:
    """The answers that lie beside the report in the file `report`, or why they cannot be used."""
    name = PurePosixPath(accuracy.predictions_file)
    if name.is_absolute() or ".." in name.parts or not name.parts:
        return "the report names no file of answers beside it"
    file = report.parent / name
    try:
        inside = file.resolve().is_relative_to(report.parent.resolve())
        content = file.read_bytes() if inside else b""
    except OSError:
        return f"{name} does not lie beside its report"
    if not inside or hashlib.sha256(content).hexdigest() != accuracy.predictions_sha256:
        return f"{name} is not the file that its report names"
    return read_jsonl(file, accuracy.n) or f"{name} is damaged"
