"""`edgevlm study`: export and measure a model many times, and show what each choice costs and gives."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import get_args

import click

from edgevlm.bench.tasks import GENERATED
from edgevlm.progress import show_progress
from edgevlm.recipe import PassEntry, Precision, Recipe, VisionPrecision
from edgevlm.runtimes.select import DECODER_ENGINES, VISION_ENGINES

_POSITIVE = click.IntRange(min=1)
_NOT_NEGATIVE = click.IntRange(min=0)
_PRECISIONS = click.Choice(get_args(Precision))


@click.group(name="study")
def command() -> None:
    """Compare many ways to compress one model."""


@command.command()
@click.argument("model")
@click.option(
    "-o", "--out", required=True, type=click.Path(path_type=Path), help="Folder for the report and the state."
)
@click.option(
    "--methods",
    required=True,
    metavar="METHOD[:OPTION=VALUE]...,...",
    help='Methods of `edgevlm pruners`, with commas between; "all" for each of them.',
)
@click.option(
    "--keep",
    default="100,50,25,12,6",
    show_default=True,
    metavar="PERCENT,...",
    help="Tokens to keep, in percent of the unpruned model's. 100 is that model, which is always measured.",
)
@click.option(
    "--tasks", "task", type=click.Choice(list(GENERATED)), default="scenes", show_default=True, help="Accuracy task."
)
@click.option("-n", "--items", type=_POSITIVE, default=500, show_default=True, help="Items of the accuracy task.")
@click.option("--split", default="test", show_default=True, help="Split of the accuracy task.")
@click.option("--format", "format_", type=click.Choice(["onnx", "gguf"]), help="Artefact format.  [default: onnx]")
@click.option("--precision", type=_PRECISIONS, help="Weights of the decoder.  [default: int4]")
@click.option(
    "--vision-precision", type=click.Choice(get_args(VisionPrecision)), help="Of the vision tower.  [default: fp16]"
)
@click.option("--resolution", type=int, help="Input pixels along one side.  [default: the checkpoint's]")
@click.option("--calibrate", metavar="SOURCE", help="Images for the methods that need them, as of `edgevlm export`.")
@click.option("--margin", type=click.FloatRange(0, 100), default=2.0, show_default=True, help="Harmless loss, points.")
@click.option("--iterations", type=_POSITIVE, default=20, show_default=True, help="Timed answers at least.")
@click.option("--min-time", type=click.FloatRange(0), default=2.0, show_default=True, help="Seconds timed at least.")
@click.option("--warmup", type=_NOT_NEGATIVE, default=2, show_default=True, help="Answers before timing.")
@click.option("--max-tokens", type=click.IntRange(min=2), default=10, show_default=True, help="Tokens a timed answer.")
@click.option("--image-size", default="1024x768", show_default=True, help="Width and height of the timed images.")
@click.option("--threads", type=_NOT_NEGATIVE, default=0, help="CPU threads.  [default: all physical cores]")
@click.option("--vision-engine", type=click.Choice(["auto", *VISION_ENGINES]), default="auto", show_default=True)
@click.option("--decoder-engine", type=click.Choice(["auto", *DECODER_ENGINES]), default="auto", show_default=True)
@click.option("--seed", type=_NOT_NEGATIVE, default=0, show_default=True, help="Of images, items and resampling.")
@click.option(
    "--timeout", type=click.FloatRange(1), default=600.0, show_default=True, help="Seconds of silence allowed."
)
@click.option(
    "--resume/--restart",
    default=True,
    show_default=True,
    help="Go on with the same study in OUT, or replace what is there.",
)
@click.option("--retry", is_flag=True, help="Try cells again that failed.")
@click.option("--save-bundles", is_flag=True, help="Leave the bundle of each cell in OUT/bundles.")
@click.option(
    "--timing/--no-timing",
    default=True,
    show_default=True,
    help="Time every bundle when all have been asked. Without, bundles stay in OUT/bundles for a run that does.",
)
@click.option("--json", "as_json", is_flag=True, help="Print report.json instead of the summary.")
def prune(
    model: str,
    out: Path,
    methods: str,
    keep: str,
    task: str,
    items: int,
    split: str,
    format_: str | None,
    precision: str | None,
    vision_precision: str | None,
    resolution: int | None,
    calibrate: str | None,
    margin: float,
    iterations: int,
    min_time: float,
    warmup: int,
    max_tokens: int,
    image_size: str,
    threads: int,
    vision_engine: str,
    decoder_engine: str,
    seed: int,
    timeout: float,
    resume: bool,
    retry: bool,
    save_bundles: bool,
    timing: bool,
    as_json: bool,
) -> None:
    """Prune the visual tokens of MODEL by each method to each count, and measure accuracy and time.

    Every cell of the grid is a bundle as `edgevlm export --prune-tokens` writes it, measured like one of `edgevlm
    bench` and compared with the unpruned bundle on the same items. A method that cannot be used on MODEL becomes a row
    with the reason. A study that was stopped goes on when it is started again.
    """
    from edgevlm.bench.render.study import print_study
    from edgevlm.bench.report import Settings
    from edgevlm.bench.study.plan import parse_methods, parse_percents
    from edgevlm.bench.study.run import Request, study_pruning
    from edgevlm.cli.bench import size
    from edgevlm.cli.ending import finish
    from edgevlm.cli.pass_flags import passes_of

    width, height = size(image_size)
    flags = {
        "model": model,
        "format": format_,
        "precision": precision,
        "vision_precision": vision_precision,
        "resolution": resolution,
        "calibration": None if calibrate is None else {"source": calibrate},
    }
    settings = Settings(
        command_line=["edgevlm", *sys.argv[1:]],
        iterations=iterations,
        min_time_s=min_time,
        warmup=warmup,
        cached=0,
        max_tokens=max_tokens,
        image_width=width,
        image_height=height,
        seed=seed,
        task=task,
        items=items,
        split=split,
        control=False,
        margin=margin / 100,
        threads=threads,
        vision_engine=vision_engine,
        decoder_engine=decoder_engine,
        silence_s=timeout,
    )

    def read_flag(value: str) -> PassEntry:
        (entry,) = passes_of({"prune_tokens": value})
        return entry

    request = Request(
        recipe=Recipe.from_sources(None, flags),
        methods=parse_methods(methods),
        percents=parse_percents(keep),
        settings=settings,
        out=out,
        read_flag=read_flag,
        restart=not resume,
        retry=retry,
        save_bundles=save_bundles,
        timing=timing,
    )
    with show_progress("study") as progress:
        report = study_pruning(request, progress=progress)
    hint = "the reasons stand in the report; --retry measures them again"
    finish(report, out, print_study, as_json=as_json, hint=hint)
