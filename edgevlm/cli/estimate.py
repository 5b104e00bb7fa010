"""`edgevlm estimate`: forecast memory, speed and energy of a model on a device, before anything is built."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, get_args

import click

from edgevlm.cli.pass_flags import pass_options, passes_of, precisions_beside
from edgevlm.errors import InputError
from edgevlm.recipe import Format, GgufType, Precision, Recipe, VisionPrecision


@click.command(name="estimate")
@click.argument("model", required=False)
@click.option("--target", default="cpu", show_default=True, help="A device of `edgevlm targets list`, or a .yaml file.")
@click.option("--format", "format_", type=click.Choice(get_args(Format)), help="[default: the target's]")
@click.option("--precision", type=click.Choice(get_args(Precision)), help="Weights of the decoder.  [default: int4]")
@click.option(
    "--vision-precision", type=click.Choice(get_args(VisionPrecision)), help="Of the vision tower.  [default: fp16]"
)
@click.option("--gguf-type", type=click.Choice(get_args(GgufType)), help="Exact GGUF type, instead of --precision.")
@click.option("--resolution", type=int, help="Input pixels along one side.  [default: the checkpoint's]")
@pass_options
@click.option("--recipe", type=click.Path(path_type=Path), help="YAML file, as `edgevlm export` reads it; flags win.")
@click.option("--context", type=click.IntRange(min=1), help="Positions of the cache.  [default: at most 4096]")
@click.option("--image-size", default="1024x768", show_default=True, metavar="WxH", help="Of the image asked about.")
@click.option("--text-tokens", type=click.IntRange(min=0), default=32, show_default=True, help="Of the prompt's text.")
@click.option("--answer-tokens", type=click.IntRange(min=1), default=64, show_default=True, help="Of the answer.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON, in bytes and milliseconds.")
def command(
    model: str | None,
    target: str,
    format_: Format | None,
    precision: str | None,
    vision_precision: str | None,
    gguf_type: str | None,
    resolution: int | None,
    recipe: Path | None,
    context: int | None,
    image_size: str,
    text_tokens: int,
    answer_tokens: int,
    as_json: bool,
    **passes: str | None,
) -> None:
    """Forecast MODEL on a device: memory, time to first token, tokens per second, energy. No weight is read.

    MODEL is a checkpoint folder, a zoo: name, a size of `edgevlm zoo list` such as fastvlm-0.5b, or a hub id. The table
    shows the model as published and after each step of the recipe. How far forecasts are off is in docs/targets.md.
    """
    from edgevlm.cli.estimate_table import as_data, print_estimate
    from edgevlm.pipeline.estimate import estimate
    from edgevlm.pipeline.planner import Question
    from edgevlm.targets.host import find_target

    beside = precisions_beside(passes.get("quantize"))
    flags: dict[str, Any] = {
        "model": model,
        "precision": precision or beside.get("precision"),
        "vision_precision": vision_precision or beside.get("vision_precision"),
        "gguf_type": gguf_type,
        "resolution": resolution,
        "format": format_,
    }
    chosen = Recipe.from_sources(recipe, flags)
    chosen = chosen.model_copy(update={"passes": (*passes_of(passes), *chosen.passes)})
    width, height = _size(image_size)
    question = Question(width, height, text_tokens, answer_tokens, context)
    found = estimate(chosen, find_target(target), question)
    if as_json:
        click.echo(json.dumps(as_data(found), ensure_ascii=False, indent=2))
        return
    print_estimate(found)


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    if match is None:
        raise InputError(f"{text!r:.40} is not a size", "--image-size", "write it as 1024x768")
    return int(match[1]), int(match[2])
