"""`edgevlm models`: list the families and reference models that can be exported."""

from __future__ import annotations

import click

from edgevlm.errors import InputError
from edgevlm.tables import print_table
from edgevlm.zoo import models as zoo_models


@click.command(name="models")
@click.argument("pattern", default="*")
def command(pattern: str) -> None:
    """List the models that can be exported; PATTERN such as 'fast*' narrows the list."""
    from edgevlm.models.catalog import matching

    rows = [[f.name, f.title, ", ".join(f.formats), "\n".join(f.checkpoints)] for f in matching(pattern)]
    bundled = [f"zoo:{name}" for name in zoo_models()]
    if not rows:
        raise InputError(f"no family matches {pattern!r}", "edgevlm models", "leave the pattern out to see all")
    print_table(["family", "what it is", "formats", "published checkpoints"], rows)
    click.echo(f"Bundled reference models: {', '.join(bundled)}")
