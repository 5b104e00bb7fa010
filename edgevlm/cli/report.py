"""`edgevlm report`: join reports of several devices, and render old reports again."""

from __future__ import annotations

import sys
from pathlib import Path

import click


@click.group(name="report")
def command() -> None:
    """Join reports of several devices, or render one again."""


@command.command()
@click.argument("reports", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-o", "--out", required=True, type=click.Path(path_type=Path), help="Folder for fleet.html, .md and .json."
)
@click.option("--name", "names", multiple=True, help="Of each device, in the reports' order.  [default: its CPU]")
def merge(reports: tuple[Path, ...], out: Path, names: tuple[str, ...]) -> None:
    """Join REPORTS, report.json files or the folders that hold them, into one page with all devices."""
    from edgevlm.bench.fleet import merge as join
    from edgevlm.bench.reading import read_report
    from edgevlm.bench.render.fleet import print_fleet, write_fleet
    from edgevlm.bench.write import claim

    fleet = join([read_report(path) for path in reports], names)
    claim(out)
    write_fleet(fleet, out)
    print_fleet(fleet, sys.stdout)
    click.echo(f"Fleet: {out / 'fleet.html'}")


@command.command()
@click.argument("report", type=click.Path(path_type=Path))
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="Folder for the files.")
def render(report: Path, out: Path) -> None:
    """Write the files of REPORT again, as this EdgeVLM shows them. Its answers are not copied."""
    from edgevlm.bench.reading import read_report
    from edgevlm.bench.write import claim, write_report

    read = read_report(report)
    claim(out)
    write_report(read.report, out)
    click.echo(f"Report: {out / 'report.html'}")
