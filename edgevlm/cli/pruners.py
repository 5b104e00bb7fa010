"""`edgevlm pruners`: list the methods that make visual tokens fewer."""

from __future__ import annotations

import json
from typing import Any

import click

from edgevlm.tables import print_table


@click.command(name="pruners")
@click.option("--json", "as_json", is_flag=True, help="Print the methods as JSON.")
def command(as_json: bool) -> None:
    """List the methods of `edgevlm export --prune-tokens METHOD:K`, what they need, and where they come from."""
    from edgevlm.pruning.tokens import REDUCERS

    if as_json:
        click.echo(json.dumps([_described(reducer) for reducer in REDUCERS.values()], ensure_ascii=False, indent=2))
        return
    rows = []
    for reducer in REDUCERS.values():
        needs = {
            "class token": reducer.uses_cls,
            "attention": reducer.uses_attention and not reducer.uses_cls,
            "prompt": reducer.needs_text,
            "decoder split": reducer.inside_decoder,
        }
        needed = ", ".join(need for need, wanted in needs.items() if wanted)
        rows.append([reducer.name, needed, reducer.summary, reducer.source, ", ".join(reducer.Options.model_fields)])
    print_table(["method", "needs", "keeps", "source", "options"], rows)


def _described(reducer: Any) -> dict[str, object]:
    return {
        "name": reducer.name,
        "uses_cls": reducer.uses_cls,
        "uses_attention": reducer.uses_attention,
        "needs_text": reducer.needs_text,
        "inside_decoder": reducer.inside_decoder,
        "summary": reducer.summary,
        "source": reducer.source,
        "options": {name: field.default for name, field in reducer.Options.model_fields.items()},
    }
