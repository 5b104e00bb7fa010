"""`edgevlm pruners`: list the methods that make visual tokens fewer."""

from __future__ import annotations

import json
from typing import Any

import click

from edgevlm.tables import print_table


@click.command(name="pruners")
@click.option("--json", "as_json", is_flag=True, help="Print the methods as JSON.")
def command(as_json: bool) -> None:
    """List the methods of `edgevlm export --prune-tokens METHOD:K`, what they need, and where they come from.

    Those that need images choose K from them, and are given as METHOD alone.
    """
    from edgevlm.pruning.tokens import CHOOSERS, REDUCERS

    methods: list[Any] = [*REDUCERS.values(), *CHOOSERS.values()]
    if as_json:
        click.echo(json.dumps([_described(method) for method in methods], ensure_ascii=False, indent=2))
        return
    rows = []
    for reducer in methods:
        needs = {
            "class token": reducer.uses_cls,
            "attention": reducer.uses_attention and not reducer.uses_cls,
            "prompt": reducer.needs_text,
            "decoder split": reducer.inside_decoder,
            "images": reducer.name in CHOOSERS,
        }
        needed = ", ".join(need for need, wanted in needs.items() if wanted)
        rows.append([reducer.name, needed, reducer.summary, reducer.source, ", ".join(reducer.Options.model_fields)])
    print_table(["method", "needs", "keeps", "source", "options"], rows)


def _described(reducer: Any) -> dict[str, object]:
    from edgevlm.pruning.tokens import CHOOSERS

    return {
        "name": reducer.name,
        "uses_cls": reducer.uses_cls,
        "uses_attention": reducer.uses_attention,
        "needs_text": reducer.needs_text,
        "inside_decoder": reducer.inside_decoder,
        "chooses_count": reducer.name in CHOOSERS,
        "summary": reducer.summary,
        "source": reducer.source,
        "options": {name: field.default for name, field in reducer.Options.model_fields.items()},
    }
