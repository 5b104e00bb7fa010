"""`edgevlm export`: compile a checkpoint into a verified bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import click

from edgevlm.cli.pass_flags import pass_options, passes_of, precisions_beside
from edgevlm.errors import InputError
from edgevlm.progress import show_progress
from edgevlm.recipe import Format, GgufType, Imatrix, Precision, Recipe, TensorRtDtype, VisionPrecision
from edgevlm.tables import printable

_PRECISIONS = click.Choice(get_args(Precision))


@click.command(name="export")
@click.argument("model", required=False)
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="Folder to write the bundle to.")
@click.option("--format", "format_", type=click.Choice(get_args(Format)), help="Artefact format.  [default: onnx]")
@click.option("--precision", type=_PRECISIONS, help="Weights of the decoder.  [default: int4]")
@click.option(
    "--vision-precision",
    type=click.Choice([*get_args(VisionPrecision), "auto"]),
    help="Of the vision tower; w8a8 computes in int8, auto where it is faster here; with --calibrate.  [default: fp16]",
)
@click.option("--gguf-type", type=click.Choice(get_args(GgufType)), help="Exact GGUF type, instead of --precision.")
@click.option(
    "--imatrix",
    type=click.Choice(get_args(Imatrix)),
    help="With GGUF: weigh errors by the calibration images, and keep the matrix.  [default: auto]",
)
@click.option(
    "--tensorrt-version", metavar="X.Y", help="With TensorRT: write graphs for this version.  [default: the target's]"
)
@click.option(
    "--tensorrt-dtype",
    type=click.Choice(get_args(TensorRtDtype)),
    help="With TensorRT: what is computed in beside fp32; 16-bit weights have it, too.  [default: fp16]",
)
@click.option(
    "--context-length", type=int, metavar="L", help="With TensorRT: positions of the key/value cache.  [default: 4096]"
)
@click.option(
    "--mmproj", is_flag=True, default=None, help="With GGUF: also write the vision side for llama.cpp's own tools."
)
@click.option("--resolution", type=int, help="Input pixels along one side.  [default: the checkpoint's]")
@pass_options
@click.option("--prompt-template", help="One of the family's prompt templates, by name.  [default: the checkpoint's]")
@click.option("--calibrate", metavar="SOURCE", help="Images for passes: scenes, a folder, or a .jsonl file.")
@click.option("-n", "calibrate_n", type=int, help="Calibration samples.  [default: 128]")
@click.option("--calib-memory", type=float, metavar="GB", help="Memory for calibration data.  [default: 4]")
@click.option("--target", help="A device of `edgevlm targets list`, or a .yaml file.  [default: cpu]")
@click.option("--recipe", type=click.Path(path_type=Path), help="YAML file with the same fields; flags win.")
@click.option("--over-memory", is_flag=True, help="Export even what the target has not the memory for.")
@click.option("--force", is_flag=True, help="Replace what is at OUT.")
def command(
    model: str | None,
    out: Path,
    format_: str | None,
    precision: str | None,
    vision_precision: str | None,
    gguf_type: str | None,
    imatrix: str | None,
    tensorrt_version: str | None,
    tensorrt_dtype: str | None,
    context_length: int | None,
    mmproj: bool | None,
    resolution: int | None,
    prompt_template: str | None,
    calibrate: str | None,
    calibrate_n: int | None,
    calib_memory: float | None,
    target: str | None,
    recipe: Path | None,
    over_memory: bool,
    force: bool,
    **passes: str | None,
) -> None:
    """Compile MODEL into a bundle and prove that it answers like the original.

    MODEL is a checkpoint folder, a zoo: name, or a hub id owner/name.
    """
    beside = precisions_beside(passes.get("quantize"))
    flags = {
        "model": model,
        "format": format_,
        "precision": precision or beside.get("precision"),
        "vision_precision": vision_precision or beside.get("vision_precision"),
        "gguf_type": gguf_type,
        "imatrix": imatrix,
        "tensorrt_version": tensorrt_version,
        "tensorrt_dtype": tensorrt_dtype,
        "context_length": context_length,
        "mmproj": mmproj,
        "resolution": resolution,
        "prompt_template": prompt_template,
        "calibration": _calibration(calibrate, calibrate_n, calib_memory),
        "target": target,
    }
    chosen = Recipe.from_sources(recipe, flags)
    chosen = chosen.model_copy(update={"passes": (*passes_of(passes), *chosen.passes)})
    from edgevlm.pipeline import compile_recipe

    with show_progress("export") as report:
        bundle = compile_recipe(chosen, out, force=force, over_memory=over_memory, progress=report)
    parity = ", ".join(f"{result.stage} {result.metric} {result.value:.4f}" for result in bundle.manifest.parity)
    for note in bundle.spec.notes:
        click.echo(f"note: {printable(note)}")
    click.echo(f"{out}: {bundle.total_bytes / 1e6:.1f} MB, verified ({parity})")


def _calibration(source: str | None, n: int | None, memory_gb: float | None) -> dict[str, Any] | None:
    """The recipe's field `calibration` from the flags; None where none was given."""
    if source is None:
        if n is not None or memory_gb is not None:
            flag = "-n" if n is not None else "--calib-memory"
            raise InputError(f"{flag} says nothing without --calibrate", flag, "add --calibrate scenes, or a folder")
        return None
    given = {"source": source, "n": n, "memory_gb": memory_gb}
    return {name: value for name, value in given.items() if value is not None}
