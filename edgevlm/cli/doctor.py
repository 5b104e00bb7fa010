"""`edgevlm doctor`: check this machine and its runtimes."""

from __future__ import annotations

import dataclasses
import json

import click

from edgevlm.doctor import examine
from edgevlm.tables import print_table


@click.command(name="doctor")
@click.option("--json", "as_json", is_flag=True, help="Print the checks as JSON.")
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> None:
    """Check this machine and its runtimes. The exit code is 1 when something is broken."""
    checks = examine()
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(check) for check in checks], ensure_ascii=False, indent=2))
    else:
        print_table(["", "state", "detail"], [[check.name, check.state, check.detail] for check in checks])
        for check in checks:
            if check.hint:
                click.echo(f"{check.name}: {check.hint}")
    if any(check.state == "broken" for check in checks):
        ctx.exit(1)
