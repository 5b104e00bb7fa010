"""`edgevlm inspect`: show what is in a bundle, without loading an engine."""

from __future__ import annotations

import json
from pathlib import Path

import click

from edgevlm.bundle import Bundle, open_bundle
from edgevlm.tables import print_table, printable


@click.command(name="inspect")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--verify", is_flag=True, help="Check every file's SHA-256.")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON.")
def command(bundle: Path, verify: bool, as_json: bool) -> None:
    """Show what is in BUNDLE: the model, its files, and how well they agree with the original."""
    opened = open_bundle(bundle, verify=verify)
    if as_json:
        click.echo(json.dumps(opened.manifest.model_dump(mode="json"), ensure_ascii=False, indent=2))
        return
    _print_model(opened)
    _print_artifacts(opened)
    _print_parity(opened)
    if opened.manifest.tools:
        tools = (f"{name} {version}" for name, version in sorted(opened.manifest.tools.items()))
        click.echo(f"made with {printable(', '.join(tools))}")
    if verify:
        click.echo("every file has the SHA-256 that the manifest names")


def _print_model(bundle: Bundle) -> None:
    manifest, spec = bundle.manifest, bundle.spec
    decoder, vision = spec.decoder, spec.vision
    size = f"{vision.image_size} x {vision.image_size} pixels to {vision.image_tokens} tokens"
    if spec.preprocess.tiles is not None and spec.preprocess.tiles.kind != "stacked":
        size = f"tiles of {vision.image_size} x {vision.image_size} pixels, {vision.image_tokens} tokens each"
    if (patches := spec.preprocess.patches) is not None:
        tokens = patches.max_pixels // vision.stride**2
        size = f"images of any shape, at most {patches.max_pixels} pixels, which become {tokens} tokens"
    if vision.reducer is not None:
        options = "".join(f", {name} {value}" for name, value in vision.reducer.options)
        among = " of a tile on average" if vision.reducer.shared else ""
        size += f" ({vision.reducer.name} keeps {vision.reducer.keep}{among}{options})"
    if (text := vision.text) is not None:
        size += f", chosen by the question: text tower of {text.num_hidden_layers} layers of {text.hidden_size}"
    heads = f"{decoder.num_attention_heads} heads ({decoder.num_key_value_heads} key/value)"
    rows = [
        ["model", f"{manifest.name} ({spec.family})"],
        ["licence of the weights", manifest.licence],
        ["format", manifest.format],
        ["vision", size],
        ["decoder", f"{decoder.architecture}, {decoder.num_hidden_layers} layers of {decoder.hidden_size}, {heads}"],
        ["vocabulary", f"{decoder.vocab_size} rows, {'tied' if decoder.tied_embeddings else 'untied'} head"],
        ["context", f"{decoder.max_position_embeddings} positions"],
        ["recipe", ", ".join(f"{key} {value}" for key, value in sorted(manifest.recipe.items()) if _is_plain(value))],
        *(["note", note] for note in spec.notes),
    ]
    if (drop := decoder.token_drop) is not None:
        stages = ", ".join(f"{stage.keep} behind layer {stage.after_layers}" for stage in drop.stages)
        rows.append(["image tokens", f"{drop.name} keeps of {drop.image_tokens}: {stages}"])
    print_table(["", ""], rows, title=str(bundle.path))


def _is_plain(value: object) -> bool:
    return isinstance(value, str | int | float) and value != ""


def _print_artifacts(bundle: Bundle) -> None:
    entries = bundle.manifest.artifacts
    rows = [
        [
            entry.path,
            entry.role,
            entry.precision,
            f"{entry.bytes:,}",
            f"{entry.bits_per_weight:.2f}" if entry.bits_per_weight else "",
            f"{entry.parameters:,}" if entry.parameters else "",
        ]
        for entry in entries
    ]
    parameters = sum(entry.parameters for entry in entries)
    weight_bits = sum(entry.bits_per_weight * entry.parameters for entry in entries)
    mean = f"{weight_bits / parameters:.2f}" if parameters else ""
    rows.append(["total", "", "", f"{bundle.total_bytes:,}", mean, f"{parameters:,}" if parameters else ""])
    headers = ["file", "role", "precision", "bytes", "bits per weight", "weights"]
    print_table(headers, rows, numeric=("bytes", "bits per weight", "weights"))


def _print_parity(bundle: Bundle) -> None:
    rows = [
        [
            result.stage,
            result.metric,
            f"{result.value:.5f}",
            f"{result.threshold:.5f}",
            "yes" if result.passed else "NO",
        ]
        for result in bundle.manifest.parity
    ]
    if rows:
        print_table(["stage", "metric", "value", "at least", "passed"], rows, numeric=("value", "at least"))
