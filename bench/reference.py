"""Writes docs/report.md, the reference of the report's format, from the schema and the definitions themselves.

`python -m edgevlm.bench.reference > docs/report.md`; a test holds the page to the code.
"""

from __future__ import annotations

from typing import Any

from edgevlm.bench.definitions import DEFINITIONS, ENERGY_DEFINITIONS, STUDY_DEFINITIONS
from edgevlm.bench.report import report_schema

_HEAD = """# The report's format

`edgevlm bench` and [`edgevlm study`](study.md) write these files to their output folder, and the answers of each model
as JSON lines under `predictions/`:

- `report.json` holds everything: settings, environment, and for each bundle every raw sample. Its JSON Schema (2020-12)
  is [bench/report.schema.json](../bench/report.schema.json).
- `report.md` and `report.html` are renderings of it. The page needs no network; its one script sorts tables, and
  without it nothing is missing. `report.md` of a study shows `tokens.svg` and `ttft.svg`, which lie beside it.

Times are milliseconds, sizes bytes, shares lie between 0 and 1, instants are ISO 8601 in UTC. What was not measured is
`null`, never zero. Unknown fields are refused. New fields have defaults, so that a report is read whatever its age;
`schema_version` changes when that cannot be, earlier versions stay readable, and later ones are refused.

A bundle that crashed, hung or answered nonsense is a row with `status` `failed`, its `reason`, and the stage that it
reached. The command's exit code is then 1; it is 130 after an interruption, with the rows so far in the report."""

_COMPARE = """## How a comparison is decided

A compressed model is compared with its baseline on the same items. The baseline is the checkpoint that the bundle was
made from, run in float32 at its own resolution, if torch is installed and its files still have the hashes in the
manifest; `--baseline` names another model or bundle. The verdict is about a margin chosen beforehand (`--margin`, 2
points):

| verdict | the 95% interval of the difference |
| --- | --- |
| non-inferior | lies above minus the margin |
| worse | lies below minus the margin |
| undecided | holds minus the margin: ask more items |

A verdict of non-inferior does not mean that the models are equal: `answers_changed` counts every difference."""


def reference() -> str:
    """The page."""
    schema = report_schema()
    definitions: dict[str, dict[str, Any]] = schema["$defs"]
    terms = {**DEFINITIONS, **ENERGY_DEFINITIONS, **STUDY_DEFINITIONS}
    parts = [_HEAD, _COMPARE, "## Definitions", *(f"- **{term}**: {text}" for term, text in terms.items())]
    parts += ["## Fields", _fields("Report", schema)]
    parts += [_fields(name, definitions[name]) for name in definitions]
    text = "\n\n".join(parts)
    return text.replace("\n\n- **", "\n- **").replace("## Definitions\n", "## Definitions\n\n") + "\n"


def _fields(name: str, model: dict[str, Any]) -> str:
    lines = [
        f"### {name}",
        "",
        str(model.get("description", "")),
        "",
        "| field | type | meaning |",
        "| --- | --- | --- |",
    ]
    required = set(model.get("required", []))
    for field, details in model["properties"].items():
        kind = _kind(details) + ("" if field in required else ", optional")
        lines.append(f"| `{field}` | {kind} | {details.get('description', '')} |")
    return "\n".join(lines)


def _kind(details: dict[str, Any]) -> str:
    """A field's type as a reader says it."""
    if "$ref" in details:
        return str(details["$ref"]).rsplit("/", 1)[-1]
    if "anyOf" in details:
        return " or ".join(_kind(choice) for choice in details["anyOf"])
    if "enum" in details or "const" in details:
        values = details.get("enum", [details.get("const")])
        return ", ".join(f"`{value}`" for value in values)
    if details.get("type") == "array":
        return f"list of {_kind(details['items'])}"
    if details.get("type") == "object":
        return f"object of {_kind(details.get('additionalProperties', {}))}"
    return str(details.get("type", "any"))


if __name__ == "__main__":
    print(reference(), end="")
