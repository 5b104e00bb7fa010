"""`edgevlm lint`: ask whether TensorRT will read a bundle's graphs, before any build."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgevlm.tables import print_table

if TYPE_CHECKING:
    from edgevlm.exporters.lint import Finding


@click.command(name="lint")
@click.argument("subject", metavar="BUNDLE|MODEL.onnx", type=click.Path(path_type=Path))
@click.option("--target", required=True, metavar="NAME", help="Device profile; `edgevlm targets list` shows them.")
@click.option("--jetpack", metavar="VERSION", help="Of a Jetson.  [default: the oldest that the bundle is written for]")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@click.pass_context
def command(ctx: click.Context, subject: Path, target: str, jetpack: str | None, as_json: bool) -> None:
    """Check every operator, type and quantization pattern against the TensorRT of a target.

    Where tensorrt-rtx is installed and builds for the target, its parser is asked, too. The exit code is 1 when
    something keeps TensorRT from reading the graphs.
    """
    from edgevlm.exporters.lint import lint

    toolkit, findings = lint(subject, target, jetpack)
    if as_json:
        answer = {"toolkit": str(toolkit), "findings": [dataclasses.asdict(finding) for finding in findings]}
        click.echo(json.dumps(answer, ensure_ascii=False, indent=2))
    elif findings:
        _print(findings, f"{subject}: {toolkit}")
    else:
        click.echo(f"{subject}: {toolkit} reads it: nothing found")
    if any(finding.blocks for finding in findings):
        ctx.exit(1)


def _print(findings: Sequence[Finding], title: str) -> None:
    """One row for findings that differ in nothing but the node."""
    alike: dict[Finding, list[str]] = {}
    for finding in findings:
        alike.setdefault(dataclasses.replace(finding, node=""), []).append(finding.node)
    rows = []
    for finding, nodes in alike.items():
        where = nodes[0] if len(nodes) == 1 else f"{nodes[0]} and {len(nodes) - 1} more"
        weight = "blocks" if finding.blocks else "note"
        rows.append([weight, finding.file, where, finding.op, finding.why, finding.fix, finding.source])
    print_table(["", "file", "node", "op", "why", "what removes it", "source"], rows, title=title)
