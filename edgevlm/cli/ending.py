"""How `bench` and `study` end: the report written, shown, and an exit code that says whether all of it was measured."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import click

from edgevlm.errors import EdgeVLMError

if TYPE_CHECKING:
    from edgevlm.bench.report import Report


def finish(report: Report, out: Path, show: Callable[[Report, TextIO], None], *, as_json: bool, hint: str) -> None:
    """Write the report's files into `out` and print it: as JSON, or with `show`.

    Args:
        hint: what to do about rows that could not be measured.

    Raises:
        KeyboardInterrupt: the run was interrupted; what it measured is written.
        EdgeVLMError: a row could not be measured.
        InputError: `out` cannot be written to.
    """
    from edgevlm.bench.write import drop_kept_rows, write_report

    write_report(report, out)
    if not report.interrupted:
        drop_kept_rows(out)
    if as_json:
        click.echo(report.model_dump_json(indent=1))
    else:
        show(report, sys.stdout)
        click.echo(f"Report: {out / 'report.html'}")
    if report.interrupted:
        raise KeyboardInterrupt
    failed = [row.name for row in report.rows if row.status == "failed"]
    if failed:
        what = f"{len(failed)} of {len(report.rows)} could not be measured: {', '.join(failed)}"
        raise EdgeVLMError(what, str(out / "report.html"), hint)
