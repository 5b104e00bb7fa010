"""Writes a report's files: report.json, report.md and report.html, and the pictures of a study."""

from __future__ import annotations

import tempfile
from pathlib import Path

from edgevlm.atomic import write_text
from edgevlm.bench.kept import KEPT
from edgevlm.bench.predictions import PREDICTIONS
from edgevlm.bench.render import study, study_markdown
from edgevlm.bench.render.report_html import render_html
from edgevlm.bench.render.report_markdown import render_markdown
from edgevlm.bench.report import Report
from edgevlm.errors import InputError


def claim(out: Path) -> None:
    """Make `out` and see that it can be written to, before hours of measuring.

    Raises:
        InputError: it cannot.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise InputError(f"cannot write here: {error.strerror}", str(out), "choose another folder for -o") from error


def forget(out: Path) -> None:
    """Remove the rows and answers that an earlier sweep into `out` left behind when it was stopped."""
    drop_kept_rows(out)
    for journal in (out / PREDICTIONS).glob("*.journal"):
        journal.unlink()


def drop_kept_rows(out: Path) -> None:
    """Remove the rows that a sweep into `out` kept; its report holds them."""
    (out / KEPT).unlink(missing_ok=True)


def write_report(report: Report, out: Path) -> None:
    """Write all, each file atomically.

    Raises:
        InputError: `out` cannot be written to.
    """
    write_text(out / "report.json", report.model_dump_json(indent=1) + "\n")
    if report.study is None:
        write_text(out / "report.md", render_markdown(report))
        write_text(out / "report.html", render_html(report))
    else:
        write_text(out / "report.md", study_markdown.render_markdown(report))
        write_text(out / "report.html", study.render_html(report))
        write_text(out / "tokens.svg", study.picture(report, "tokens"))
        write_text(out / "ttft.svg", study.picture(report, "ttft"))
