"""The comparison of two reports as data: one frozen model, one JSON schema; the renderings are made of it.

Changes are shares of the old value: +0.05 is five hundredths more. What has no interval is null, never zero. `python -m
edgevlm.bench.comparison` prints the JSON Schema (2020-12) that stands in comparison.schema.json.
"""

from __future__ import annotations

import json
from typing import Any, Literal, TypeAlias

from pydantic import Field

from edgevlm.bench.pairs import Interval, Proportion
from edgevlm.bench.report import Paired, Part

COMPARISON_VERSION = 1
Judgement: TypeAlias = Literal["regression", "undecided", "unchanged", "improvement"]
Unit: TypeAlias = Literal["ms", "tokens/s", "images/s", "bytes", "J"]


class Source(Part):
    """One of the two reports."""

    path: str
    sha256: str
    started: str
    edgevlm: str
    git_commit: str | None
    cpu_model: str


class Change(Part):
    """One figure of both rows."""

    figure: str
    unit: Unit
    better: Literal["lower", "higher"]
    old: float
    new: float
    old_n: int | None = Field(description="samples behind the figure; null for one that is counted, not sampled")
    new_n: int | None
    change: float = Field(description="new / old - 1")
    interval: Interval | None = Field(
        description="95% interval of the change; null with too few samples, and for figures that are not sampled"
    )
    judgement: Judgement
    judged: bool = Field(description="whether a regression here makes the comparison fail; stages only explain")


class AccuracyChange(Part):
    """Accuracy of both rows on one task."""

    task: str
    old: Proportion
    new: Proportion
    delta: Interval = Field(description="new less old, 95% interval")
    paired: Paired | None = Field(description="the same items, where the answers lie beside both reports")
    unpaired_reason: str = Field(description="why items could not be paired; empty if they were")
    judgement: Judgement


class RowChange(Part):
    """Two rows that are the same thing."""

    name: str
    old_name: str
    what: str = Field(description="format, precision, pruning, engines, threads, resolution")
    old_status: Literal["ok", "failed", "skipped"]
    new_status: Literal["ok", "failed", "skipped"]
    status_judgement: Judgement = Field(description="regression: it worked and now fails")
    reason: str = Field(description="why the new one failed; empty if it did not")
    changes: list[Change]
    accuracy: AccuracyChange | None
    remarks: list[str] = Field(description="what was flagged in either row")


class Difference(Part):
    """Something of the two runs that differs."""

    name: str
    old: str
    new: str


class Comparison(Part):
    """Two reports, row by row."""

    schema_version: Literal[1]
    old: Source
    new: Source
    tolerance: float = Field(description="worsening that is accepted, as a share of the old value")
    margin: float = Field(description="loss of accuracy that is accepted; 0.02 are two points")
    same_machine: bool
    differences: list[Difference] = Field(description="of machine, software and settings")
    rows: list[RowChange]
    only_old: list[str]
    only_new: list[str]

    @property
    def regressions(self) -> list[str]:
        """What makes the comparison fail, a line each."""
        found = []
        for row in self.rows:
            if row.status_judgement == "regression":
                found.append(f"{row.name} no longer works")
            found += [
                f"{row.name}: {change.figure}"
                for change in row.changes
                if change.judged and change.judgement == "regression"
            ]
            if row.accuracy is not None and row.accuracy.judgement == "regression":
                found.append(f"{row.name}: accuracy")
        return found


def comparison_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of `comparison.json`."""
    schema = Comparison.model_json_schema()
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:edgevlm:comparison:{COMPARISON_VERSION}",
        **schema,
    }


if __name__ == "__main__":
    print(json.dumps(comparison_schema(), indent=2))
