"""Reports of several devices in one: a frozen model with one JSON schema; the renderings are made of it.

`python -m edgevlm.bench.fleet` prints the JSON Schema (2020-12) that stands in fleet.schema.json; it refers to the
schema of a report.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from edgevlm.bench.matching import identity
from edgevlm.bench.reading import ReadReport
from edgevlm.bench.report import SCHEMA_ID, Part, Report, Row
from edgevlm.errors import InputError

FLEET_VERSION = 1


class Device(Part):
    """One device and what was measured on it."""

    name: str = Field(description="unique in the fleet")
    path: str = Field(description="of the report")
    sha256: str = Field(description="of the report's file")
    report: Report


class Fleet(Part):
    """Several devices."""

    schema_version: Literal[1]
    devices: list[Device]


def merge(reads: Sequence[ReadReport], names: Sequence[str] = ()) -> Fleet:
    """The reports as one, in the order in which they were given.

    Args:
        reads: reports with their files.
        names: of the devices, as many as reports; without them the CPU's, told apart by the folder of the report.

    Raises:
        InputError: a report stands there twice, or the names are not unique or not as many as reports.
    """
    digests = [read.sha256 for read in reads]
    again = next((read for read in reads if digests.count(read.sha256) > 1), None)
    if again is not None:
        raise InputError("this report is there twice", str(again.path), "give each report once")
    if names and len(names) != len(reads):
        raise InputError(f"{len(names)} names for {len(reads)} reports", "--name", "give one a report, in their order")
    chosen = list(names) or _names(reads)
    if len(set(chosen)) != len(chosen):
        raise InputError("two devices have the same name", "--name", "give each device a name of its own")
    devices = [
        Device(name=name, path=str(read.path), sha256=read.sha256, report=read.report)
        for name, read in zip(chosen, reads, strict=True)
    ]
    return Fleet(schema_version=FLEET_VERSION, devices=devices)


def _names(reads: Sequence[ReadReport]) -> list[str]:
    """The CPU of each; where several have the same one, with the folder behind it, and numbered if that is no help."""
    cpus = [read.report.environment.cpu_model for read in reads]
    folders = [read.path.resolve().parent.name for read in reads]
    found = [cpu if cpus.count(cpu) == 1 else f"{cpu}, {folder}" for cpu, folder in zip(cpus, folders, strict=True)]
    return [name if found.count(name) == 1 else f"{name} ({number})" for number, name in enumerate(found, 1)]


def side_by_side(fleet: Fleet) -> list[tuple[Device, Row]]:
    """All rows, those of the same thing on several devices next to each other."""
    order: dict[str, int] = {}
    keyed = []
    for place, device in enumerate(fleet.devices):
        for row in device.report.rows:
            what = identity(device.report, row)
            key = f"{what.kind} {what.model} {what.format} {what.precision} {what.pruning} {what.resolution} {row.name}"
            keyed.append((order.setdefault(key, len(order)), place, device, row))
    return [(device, row) for _, _, device, row in sorted(keyed, key=lambda each: each[:2])]


def as_report(fleet: Fleet) -> Report:
    """All rows as those of one report, for the pictures: each named by its bundle and its device."""
    rows = [row.model_copy(update={"name": f"{row.name} · {device.name}"}) for device, row in side_by_side(fleet)]
    return fleet.devices[0].report.model_copy(update={"rows": rows, "study": None})


def fleet_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of `fleet.json`."""
    schema = Fleet.model_json_schema()
    device = schema["$defs"]["Device"]
    device["properties"]["report"] = {"$ref": SCHEMA_ID}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:edgevlm:fleet:{FLEET_VERSION}",
        **schema,
        "$defs": {"Device": device},
    }


if __name__ == "__main__":
    print(json.dumps(fleet_schema(), indent=2))
