"""`edgevlm compare`: say what got worse between two reports."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import click

from edgevlm.errors import EdgeVLMError


class Percent(click.ParamType[float]):
    """`5%` or `5` as 0.05."""

    name = "PERCENT"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read what was written; a default is read like it."""
        try:
            number = float(str(value).removesuffix("%"))
        except ValueError:
            number = math.nan
        if not 0 <= number <= 1000:
            self.fail(f"{value!r} is not a percentage from 0 to 1000", param, ctx)
        return number / 100


@click.command(name="compare")
@click.argument("old", type=click.Path(path_type=Path))
@click.argument("new", type=click.Path(path_type=Path))
@click.option("--tolerance", type=Percent(), default="5%", show_default=True, help="Worsening that is accepted.")
@click.option(
    "--margin", type=click.FloatRange(0, 100), default=2.0, show_default=True, help="Harmless loss of accuracy, points."
)
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Folder for comparison.html, .md and .json.")
@click.option("--json", "as_json", is_flag=True, help="Print comparison.json instead of the summary.")
def command(old: Path, new: Path, tolerance: float, margin: float, out: Path | None, as_json: bool) -> None:
    """Compare the report NEW with the report OLD: report.json files, or the folders that hold them.

    Leaves with 1 where something got worse beyond the tolerance and its 95% interval does not reach back into it.
    """
    from edgevlm.bench.compare import compare
    from edgevlm.bench.reading import read_report
    from edgevlm.bench.render.comparison import print_comparison, write_comparison
    from edgevlm.bench.write import claim

    compared = compare(read_report(old), read_report(new), tolerance=tolerance, margin=margin / 100)
    if out is not None:
        claim(out)
        write_comparison(compared, out)
    if as_json:
        click.echo(compared.model_dump_json(indent=1))
    else:
        print_comparison(compared, sys.stdout)
        if out is not None:
            click.echo(f"Comparison: {out / 'comparison.html'}")
    if compared.regressions:
        count = len(compared.regressions)
        raise EdgeVLMError(
            f"{count} regression{'s' * (count != 1)}: {', '.join(compared.regressions)}",
            str(new),
            "measure again on an idle machine, or accept more with --tolerance and --margin",
        )
