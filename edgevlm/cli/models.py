"""`edgevlm models`: list the families and reference models that can be exported."""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from typing import TYPE_CHECKING

import click

from edgevlm.errors import InputError
from edgevlm.tables import print_table, printable
from edgevlm.zoo import models as zoo_models

if TYPE_CHECKING:
    from edgevlm.models.catalog import Family

_WIDTH = 80


@click.command(name="models")
@click.argument("pattern", default="*")
@click.option("--explain", metavar="MODEL", help="Load MODEL and show which file each of its tensors comes from.")
def command(pattern: str, explain: str | None) -> None:
    """List the models that can be exported; PATTERN such as 'fast*' narrows the list."""
    from edgevlm.models.catalog import matching

    if explain is not None:
        _explain(explain)
        return
    families = matching(pattern)
    bundled = [f"zoo:{name}" for name in zoo_models()]
    if not families:
        raise InputError(f"no family matches {pattern!r}", "edgevlm models", "leave the pattern out to see all")
    print_table(["family", "formats"], [[family.name, ", ".join(family.formats)] for family in families])
    for family in families:
        click.echo(f"\n{_described(family)}")
    click.echo("\n" + _filled(f"Bundled reference models: {', '.join(bundled)}", "", "  "))


def _explain(name: str) -> None:
    """A table of tensors, those of all layers in one row, and their sources."""
    from edgevlm.models import load, resolve

    model = load(resolve(name))
    parts = (("vision", model.vision), ("fusion", model.fusion), ("decoder", model.decoder))
    names = [f"{part}.{tensor}" for part, module in parts if module is not None for tensor in module.state_dict()]
    only = ", ".join(path.name for path in model.sources)
    rows = Counter((re.sub(r"\.\d+\.", ".*.", tensor), model.provenance.get(tensor, only)) for tensor in names)
    print_table(
        ["tensors", "count", "source"],
        [[printable(pattern), str(count), printable(source)] for (pattern, source), count in rows.items()],
        title=str(name),
        numeric=("count",),
    )


def _described(family: Family) -> str:
    """Name, title and checkpoints on lines of at most 80 columns; a hub id is never broken, so it can be copied."""
    indent = "    "
    title = textwrap.fill(f"{family.name}: {family.title}", _WIDTH, subsequent_indent="  ")
    return f"{title}\n{_filled(' '.join(family.checkpoints), indent, indent)}"


def _filled(names: str, first: str, others: str) -> str:
    """Names on lines that begin with `first` or `others`; none is broken."""
    return textwrap.fill(
        names, _WIDTH, initial_indent=first, subsequent_indent=others, break_long_words=False, break_on_hyphens=False
    )
