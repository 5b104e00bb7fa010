"""The table of what TensorRT's parsers take, and which part of it concerns one toolkit.

In: `support.yaml` beside this file. Out: a `Support` for a toolkit's version and a GPU: since when operators are known,
and the patterns that are refused although their operator is.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import yaml
from pydantic import BaseModel, ConfigDict, Field

from edgevlm.errors import UnsupportedError
from edgevlm.targets.profile import TargetProfile, Version, version_tuple

ToolkitKind: TypeAlias = Literal["tensorrt", "rtx"]
_TABLE = Path(__file__).parent / "support.yaml"
_NAMES: dict[ToolkitKind, str] = {"tensorrt": "TensorRT", "rtx": "TensorRT for RTX"}


@dataclass(frozen=True)
class Toolkit:
    """A TensorRT: which of the two, its version, and the compute capability of the GPU it builds for."""

    kind: ToolkitKind
    version: tuple[int, ...]
    compute_capability: tuple[int, int]

    def __str__(self) -> str:
        version = ".".join(map(str, self.version))
        major, minor = self.compute_capability
        return f"{_NAMES[self.kind]} {version} on SM {major}.{minor}"

    @classmethod
    def of(cls, profile: TargetProfile, jetpack: str | None = None, least: tuple[int, ...] = ()) -> Toolkit:
        """What builds for a target: that of a JetPack, or the first release of at least a version, or else the first.

        Raises:
            UnsupportedError: the target has no TensorRT.
            InputError: the target does not have this JetPack.
        """
        capability = profile.compute_capability
        if capability is not None and jetpack is not None:
            return cls("tensorrt", profile.tensorrt_of(jetpack), capability)
        if capability is not None and profile.tensorrt_rtx is not None:
            return cls("rtx", version_tuple(profile.tensorrt_rtx.version), capability)
        if capability is not None and profile.tensorrt:
            enough = [version for version in profile.tensorrt if version >= least]
            return cls("tensorrt", (enough or profile.tensorrt)[0], capability)
        raise UnsupportedError(
            f"{profile.title} has no TensorRT",
            "--target",
            "take a Jetson, an RTX card or the h100; other targets run ONNX",
        )


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Range(_Row):
    """Versions from one on, below another."""

    start: Version = Field(alias="from")
    below: Version | None = None

    def holds(self, version: tuple[int, ...]) -> bool:
        """Whether the version lies within; a version with more parts than a bound lies behind it."""
        return version_tuple(self.start) <= version and (self.below is None or version < version_tuple(self.below))


class OperatorRow(_Row):
    """Operators that are known since the same versions."""

    names: list[list[str]]
    source: str
    domain: str = ""
    since: dict[ToolkitKind, Version] = Field(alias="from")
    fix: str = "export with --format tensorrt and this target"


class PatternRow(_Row):
    """A pattern that some versions refuse (`blocks`) or pay for."""

    pattern: str
    why: str
    fix: str
    source: str
    blocks: bool = True
    below_compute_capability: float | None = None
    tensorrt: Range | None = None
    rtx: Range | None = None


class OpsetRow(_Row):
    """The newest opset that versions were written for."""

    newest: int
    source: str
    tensorrt: Range | None = None
    rtx: Range | None = None


class Table(_Row):
    """The file's content."""

    sources: dict[str, str]
    operators: list[OperatorRow]
    patterns: list[PatternRow]
    opsets: list[OpsetRow]


class Support:
    """The part of the table that concerns one toolkit.

    Attributes:
        operators: (domain, name) -> its row.
        patterns: rows to look for.
        opset: the newest opset this version was written for, and its row.
    """

    def __init__(self, toolkit: Toolkit) -> None:
        table = read_table()
        self.toolkit = toolkit
        self.sources = table.sources
        self.operators = {(row.domain, name): row for row in table.operators for line in row.names for name in line}
        self.patterns = [row for row in table.patterns if self._concerns(row)]
        self.opset = next(row for row in table.opsets if _holds(row, toolkit))

    def _concerns(self, row: PatternRow) -> bool:
        below = row.below_compute_capability
        major, minor = self.toolkit.compute_capability
        return _holds(row, self.toolkit) and (below is None or major + minor / 10 < below)

    def knows(self, row: OperatorRow) -> bool:
        """Whether the toolkit's version is one that knows the row's operators."""
        since = row.since.get(self.toolkit.kind)
        return since is not None and version_tuple(since) <= self.toolkit.version


def _holds(row: PatternRow | OpsetRow, toolkit: Toolkit) -> bool:
    span = row.tensorrt if toolkit.kind == "tensorrt" else row.rtx
    return span is not None and span.holds(toolkit.version)


@functools.cache
def read_table() -> Table:
    """The table, checked."""
    return Table.model_validate(yaml.safe_load(_TABLE.read_text(encoding="utf-8")))
