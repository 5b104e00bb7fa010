"""A run of the suite against the baseline of this class of machines, and new baselines.

In: the JSON file that pytest-benchmark writes. Out: a table of ratios, time now over time in the baseline, and with
`--save` a new `bench/baselines/CLASS.json`, which holds medians and interquartile ranges alone. A row is marked where
the medians lie apart by more than both interquartile ranges and more than 10%. Run by `make bench` as

    python -m edgevlm.bench.suite.baseline out/bench.json
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgevlm.atomic import write_text
from edgevlm.bench.suite.machine_class import MachineClass, this_class
from edgevlm.errors import EdgeVLMError, InputError
from edgevlm.tables import print_table
from edgevlm.validation import first_problem

FOLDER = Path("bench/baselines")
#: Share of the time in the baseline by which a row has to differ to be marked.
LEAST_CHANGE = 0.10
_MILLISECONDS_DIGITS = 4

Verdict: TypeAlias = Literal["slower", "faster", "", "new", "not run"]


class Timing(BaseModel):
    """Median and interquartile range of one row, over so many rounds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    median_ms: float = Field(gt=0, allow_inf_nan=False)
    iqr_ms: float = Field(ge=0, allow_inf_nan=False)
    rounds: int = Field(ge=1)


class Baseline(BaseModel):
    """What a machine of a class took, and when; rows by the name of the test."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    machine: MachineClass
    taken: str
    commit: str
    rows: dict[str, Timing]


class _Stats(BaseModel):
    median: float
    iqr: float
    rounds: int


class _Benchmark(BaseModel):
    fullname: str
    stats: _Stats


class _Commit(BaseModel):
    id: str | None = None
    dirty: bool | None = None


class _Run(BaseModel):
    """The part of pytest-benchmark's file that is read; seconds."""

    datetime: str
    commit_info: _Commit
    benchmarks: list[_Benchmark]


@dataclass(frozen=True)
class Change:
    """One row in the baseline and now; None on a side that lacks it."""

    row: str
    before: Timing | None
    now: Timing | None

    @property
    def ratio(self) -> float | None:
        """Time now over time before."""
        return None if self.before is None or self.now is None else self.now.median_ms / self.before.median_ms

    @property
    def verdict(self) -> Verdict:
        """`slower` and `faster` beyond both interquartile ranges and `LEAST_CHANGE`."""
        if self.before is None:
            return "new"
        if self.now is None:
            return "not run"
        apart = self.now.median_ms - self.before.median_ms
        spread = max(self.now.iqr_ms, self.before.iqr_ms, LEAST_CHANGE * self.before.median_ms)
        if abs(apart) <= spread:
            return ""
        return "slower" if apart > 0 else "faster"


def read_run(path: Path, machine: MachineClass) -> Baseline:
    """What pytest-benchmark measured on `machine`.

    Raises:
        InputError: the file is none of pytest-benchmark's, or holds no benchmark.
    """
    try:
        run = _Run.model_validate_json(_text(path))
        rows = {_row(each.fullname): _timing(each.stats) for each in run.benchmarks}
    except ValidationError as error:
        what, where = first_problem(error)
        raise InputError(f"not a file of pytest-benchmark: {what}", f"{path}: {where}", "run make bench") from error
    if not rows:
        raise InputError("the file holds no benchmark", str(path), "run make bench")
    commit = f"{(run.commit_info.id or 'unknown')[:12]}{'+changes' if run.commit_info.dirty else ''}"
    return Baseline(machine=machine, taken=run.datetime[:19], commit=commit, rows=dict(sorted(rows.items())))


def _row(fullname: str) -> str:
    return fullname.removeprefix("bench/suite/")


def _timing(stats: _Stats) -> Timing:
    median, iqr = (round(1e3 * seconds, _MILLISECONDS_DIGITS) for seconds in (stats.median, stats.iqr))
    return Timing(median_ms=max(median, 10.0**-_MILLISECONDS_DIGITS), iqr_ms=iqr, rounds=stats.rounds)


def read_baseline(path: Path) -> Baseline | None:
    """The baseline in a file; None where there is no such file.

    Raises:
        InputError: the file is no baseline.
    """
    if not path.exists():
        return None
    try:
        return Baseline.model_validate_json(_text(path))
    except ValidationError as error:
        what, where = first_problem(error)
        raise InputError(f"not a baseline: {what}", f"{path}: {where}", "write one with --save") from error


def _text(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read: {error.strerror}", str(path), "run make bench") from error


def compare(before: Baseline, now: Baseline) -> list[Change]:
    """All rows of either side, by name."""
    names = sorted({*before.rows, *now.rows})
    return [Change(name, before.rows.get(name), now.rows.get(name)) for name in names]


def save(now: Baseline, before: Baseline | None, path: Path) -> None:
    """Write `now` as the baseline; rows that were not run keep what they had.

    Raises:
        InputError: the file cannot be written.
    """
    rows = {**(before.rows if before else {}), **now.rows}
    kept = now.model_copy(update={"rows": dict(sorted(rows.items()))})
    write_text(path, json.dumps(kept.model_dump(mode="json"), indent=1) + "\n")


def show(changes: Sequence[Change], before: Baseline) -> None:
    """Print the table."""
    rows = [
        (
            change.row,
            _shown(change.before),
            _shown(change.now),
            f"{change.ratio:.3f}" if change.ratio else "",
            change.verdict,
        )
        for change in changes
    ]
    title = f"Time now over the baseline of {before.taken} (commit {before.commit}) on {before.machine.name}"
    headers = ("row", "before, IQR (ms)", "now, IQR (ms)", "ratio", "")
    print_table(headers, rows, title=title, numeric=headers[1:4])


def _shown(timing: Timing | None) -> str:
    return "" if timing is None else f"{timing.median_ms:.3f} ({timing.iqr_ms:.3f})"


def run(path: Path, folder: Path, machine: MachineClass, *, save_it: bool, strict: bool) -> int:
    """Compare, print, perhaps save; the exit code.

    Raises:
        InputError: a file cannot be read or written.
    """
    file = folder / f"{machine.name}.json"
    now, before = read_run(path, machine), read_baseline(file)
    changes = compare(before, now) if before else []
    if before:
        show(changes, before)
        slower = sum(change.verdict == "slower" for change in changes)
        print(f"{slower} of {len(now.rows)} rows are slower beyond their spread and {LEAST_CHANGE:.0%}")
    else:
        print(f"No baseline for {machine.name} in {folder}; --save writes one")
    if save_it:
        save(now, before, file)
        print(f"Wrote {file}")
    return int(strict and any(change.verdict == "slower" for change in changes))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="edgevlm.bench.suite.baseline", description="compare a run of the suite")
    parser.add_argument("run", type=Path, help="pytest-benchmark's JSON file")
    parser.add_argument("--baselines", type=Path, default=FOLDER, help="folder of baselines (%(default)s)")
    parser.add_argument("--save", action="store_true", help="make this run the baseline of its class of machines")
    parser.add_argument("--strict", action="store_true", help="exit with 1 where a row is marked slower")
    given = parser.parse_args(arguments)
    try:
        return run(given.run, given.baselines, this_class(), save_it=given.save, strict=given.strict)
    except EdgeVLMError as error:
        print(error, file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
