"""Finds the rows of two reports that are the same thing, by what they are and not by what their folders are called.

What was not told, as the engines of a bundle that never loaded, agrees with anything; where that leaves a choice, the
name decides, and where it does not either, the rows stay without a counterpart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

from edgevlm.bench.grid import method_label
from edgevlm.bench.report import Engine, Report, Row


@dataclass(frozen=True)
class Identity:
    """What a row is. None where the report does not tell.

    Attributes:
        model: name of the model.
        kind: bundle or reference.
        format: onnx, gguf ...
        precision: of the weights by role.
        pruning: what the recipe did to the model before export, or the method of a study; empty for nothing.
        engines: of vision and decoder, without versions.
        threads: that were asked for; 0 is the engines' own choice.
        resolution: pixels along one side.
        scenario: single-stream or offline.
    """

    model: str
    kind: str
    format: str
    precision: str
    pruning: str | None
    engines: str | None
    threads: int
    resolution: int | None
    scenario: str

    def agrees(self, other: Identity) -> bool:
        """Whether nothing that both tell differs."""
        pairs = ((getattr(self, field.name), getattr(other, field.name)) for field in fields(self))
        return all(mine is None or theirs is None or mine == theirs for mine, theirs in pairs)

    def __str__(self) -> str:
        parts = [self.format, self.precision, self.pruning, self.engines]
        parts += [
            f"{self.threads} thread{'s' * (self.threads != 1)}" if self.threads else "",
            f"{self.resolution} px" if self.resolution else "",
        ]
        parts += [self.scenario if self.scenario != "single-stream" else ""]
        return ", ".join(part for part in parts if part)


@dataclass(frozen=True)
class Matches:
    """Rows of an old and a new report: the pairs, and those that only one of the two has."""

    pairs: list[tuple[Row, Row]]
    only_old: list[Row]
    only_new: list[Row]


def identity(report: Report, row: Row) -> Identity:
    """What a row of the report is."""
    return Identity(
        model=row.model,
        kind=row.kind,
        format=row.format,
        precision=precision(row),
        pruning=_pruning(row),
        engines=_engines(row),
        threads=row.threads if row.threads is not None else report.settings.threads,
        resolution=row.resolution,
        scenario=report.settings.scenario,
    )


def precision(row: Row) -> str:
    """`int4`, or by role where these differ: `vision fp16, decoder int4`."""
    by_role = {file.role: file.precision for file in row.files if file.parameters and file.precision}
    if len(set(by_role.values())) == 1:
        return next(iter(by_role.values()))
    roles = [role for role in by_role if role in ("vision", "decoder")]
    told = {by_role[role] for role in roles}
    roles += [role for role, kind in by_role.items() if kind not in told]
    return ", ".join(f"{role} {by_role[role]}" for role in roles)


def precision_of(row: Row, role: str) -> str:
    """Of the weights of a role; empty where there are none."""
    return next((file.precision for file in row.files if file.role == role and file.parameters), "")


def pruning_label(row: Row) -> str:
    """What was done to the model before export; empty for nothing, and where the report does not tell."""
    return _pruning(row) or ""


def _pruning(row: Row) -> str | None:
    if row.pruning is not None:
        return f"{method_label(row.pruning)} {row.pruning.tokens}"
    return None if row.passes is None else "; ".join(row.passes)


def _engines(row: Row) -> str | None:
    if row.vision_engine is None or row.decoder_engine is None:
        return None
    names = [_engine(row.vision_engine), _engine(row.decoder_engine)]
    return " + ".join(dict.fromkeys(names))


def _engine(engine: Engine) -> str:
    provider = engine.details.get("provider", "").removesuffix("ExecutionProvider")
    return " ".join([*engine.name.split()[:1], *([provider] if provider else [])])


@dataclass(frozen=True)
class _Test:
    """When two rows count as the same: how what they are is compared, and whether their names are equal too."""

    same: Callable[[Identity, Identity], bool]
    named: bool

    def passes(self, old: tuple[Row, Identity], new: tuple[Row, Identity]) -> bool:
        return self.same(old[1], new[1]) and (not self.named or old[0].name == new[0].name)


def match(old: Report, new: Report) -> Matches:
    """The rows of both that are the same thing, in the new report's order."""
    old_left = {index: (row, identity(old, row)) for index, row in enumerate(old.rows)}
    new_left = {index: (row, identity(new, row)) for index, row in enumerate(new.rows)}
    found: dict[int, int] = {}
    for same, named in (
        (Identity.__eq__, True),
        (Identity.__eq__, False),
        (Identity.agrees, True),
        (Identity.agrees, False),
    ):
        test = _Test(same, named)
        for index, entry in list(new_left.items()):
            here = [other for other, candidate in old_left.items() if test.passes(candidate, entry)]
            if len(here) == 1 and sum(test.passes(old_left[here[0]], other) for other in new_left.values()) == 1:
                found[index] = here[0]
                del new_left[index], old_left[here[0]]
    return Matches(
        [(old.rows[found[index]], row) for index, row in enumerate(new.rows) if index in found],
        [row for row, _ in old_left.values()],
        [row for row, _ in new_left.values()],
    )
