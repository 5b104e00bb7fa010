"""`edgevlm bench`: measure bundles and write a report."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import click

from edgevlm.bundle import Bundle, open_bundle
from edgevlm.errors import EdgeVLMError
from edgevlm.progress import show_progress
from edgevlm.runtimes.base import KvCache
from edgevlm.runtimes.device import parse_device
from edgevlm.runtimes.select import DECODER_ENGINES, VISION_ENGINES

if TYPE_CHECKING:
    from edgevlm.bench.report import Report, Scenario

_POSITIVE = click.IntRange(min=1)
_NOT_NEGATIVE = click.IntRange(min=0)


@click.command(name="bench")
@click.argument("bundles", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="Folder for the report.")
@click.option(
    "--tasks",
    "task",
    metavar="TASK[:FOLDER]",
    help="Accuracy task: scenes, digits, or a data set and the folder of its files.  [default: none]",
)
@click.option("-n", "--items", type=_POSITIVE, help="Items of the accuracy task.  [default: all; 500 of scenes]")
@click.option("--split", default="", help="Split of the accuracy task.  [default: its usual one]")
@click.option("--images", type=click.Path(path_type=Path), help="Folder of the data set's pictures, if another one.")
@click.option("--scorer", default="", help="Rule of `edgevlm data list`.  [default: its usual one]")
@click.option("--template", default="", help="Wording of prompts there.  [default: its usual one]")
@click.option("--baseline", help="Bundle or model to compare with.  [default: what each bundle was made from]")
@click.option("--margin", type=click.FloatRange(0, 100), default=2.0, show_default=True, help="Harmless loss, points.")
@click.option("--gate", metavar="accuracy_drop<=POINTS", help="Fail unless every bundle surely loses less than that.")
@click.option("--control", is_flag=True, help="Ask the items once more with grey noise for images.")
@click.option("--iterations", type=_POSITIVE, default=10, show_default=True, help="Timed answers at least.")
@click.option("--min-time", type=click.FloatRange(0), default=10.0, show_default=True, help="Seconds timed at least.")
@click.option("--warmup", type=_NOT_NEGATIVE, default=2, show_default=True, help="Answers before timing.")
@click.option("--cached", type=_NOT_NEGATIVE, default=7, show_default=True, help="Answers to one image, caches on.")
@click.option("--max-tokens", type=click.IntRange(min=2), default=32, show_default=True, help="Tokens a timed answer.")
@click.option("--image-size", default="1024x768", show_default=True, help="Width and height of the timed images.")
@click.option(
    "--idle-time", type=click.FloatRange(0, 600), default=5.0, show_default=True, help="Seconds of idle power; 0: none."
)
@click.option("--threads", default="0", help="CPU threads, or several: 1,2,4.  [default: all physical cores]")
@click.option("--resolution", default="", help="Pixels a side, or several: 512,1024.  [default: each bundle's own]")
@click.option("--scenario", type=click.Choice(["single-stream", "offline"]), default="single-stream", show_default=True)
@click.option("--vision-engine", type=click.Choice(["auto", *VISION_ENGINES]), default="auto", show_default=True)
@click.option("--decoder-engine", type=click.Choice(["auto", *DECODER_ENGINES]), default="auto", show_default=True)
@click.option("--device", default="auto", show_default=True, help="cpu, cuda:0, tensorrt:0 or auto.")
@click.option("--kv-cache", type=click.Choice(get_args(KvCache)), default="auto", show_default=True)
@click.option("--forecast", metavar="TARGET", help="Put the forecast for that target beside what is measured.")
@click.option("--seed", type=_NOT_NEGATIVE, default=0, show_default=True, help="Of images, items and resampling.")
@click.option(
    "--timeout", type=click.FloatRange(1), default=600.0, show_default=True, help="Seconds of silence allowed."
)
@click.option(
    "--resume/--restart",
    default=True,
    show_default=True,
    help="Keep the rows and answers of a run into OUT that was stopped, or measure again.",
)
@click.option("--json", "as_json", is_flag=True, help="Print report.json instead of the summary.")
def command(
    bundles: tuple[Path, ...],
    out: Path,
    task: str | None,
    items: int | None,
    split: str,
    images: Path | None,
    scorer: str,
    template: str,
    baseline: str | None,
    margin: float,
    gate: str | None,
    control: bool,
    iterations: int,
    min_time: float,
    warmup: int,
    cached: int,
    max_tokens: int,
    image_size: str,
    idle_time: float,
    threads: str,
    resolution: str,
    scenario: Scenario,
    vision_engine: str,
    decoder_engine: str,
    kv_cache: KvCache,
    device: str,
    forecast: str | None,
    seed: int,
    timeout: float,
    resume: bool,
    as_json: bool,
) -> None:
    """Measure speed, memory and accuracy of each BUNDLE and write report.html, report.md and report.json to OUT.

    Each bundle runs in a process of its own; one that fails becomes a row of the report, and the rest goes on. Several
    numbers of threads or resolutions make a matrix: a row for each of them and each bundle. --scenario single-stream
    asks as an app does, the next question after the last answer; offline is a batch job, which has all images at once.
    """
    from edgevlm.bench.gate import broken, drop_of
    from edgevlm.bench.render.console import print_report
    from edgevlm.bench.report import Settings
    from edgevlm.bench.sweep import sweep
    from edgevlm.bench.write import claim, forget
    from edgevlm.cli.ending import finish
    from edgevlm.targets.sensors.log import SensorLog

    width, height = size(image_size)
    counts = numbers(threads, "--threads", 0)
    task, _, data = (task or "").partition(":")
    if gate is not None:
        margin = drop_of(gate)
    settings = Settings(
        command_line=["edgevlm", *sys.argv[1:]],
        iterations=iterations,
        min_time_s=min_time,
        warmup=warmup,
        cached=cached,
        max_tokens=max_tokens,
        image_width=width,
        image_height=height,
        seed=seed,
        task=task or None,
        data=data,
        images="" if images is None else str(images),
        scorer=scorer,
        template=template,
        items=items or 0,
        split=split,
        control=control,
        margin=margin / 100,
        threads=counts[0],
        thread_counts=counts if len(counts) > 1 else [],
        resolutions=numbers(resolution, "--resolution", 1) if resolution else [],
        scenario=scenario,
        vision_engine=vision_engine,
        decoder_engine=decoder_engine,
        kv_cache=kv_cache,
        device=str(parse_device(device)),
        silence_s=timeout,
        idle_s=idle_time,
    )
    opened = [open_bundle(path) for path in bundles]
    add_forecasts = None if forecast is None else _forecaster(forecast)
    claim(out)
    if not resume:
        forget(out)
    with show_progress("bench") as progress, SensorLog() as sensors:
        report = sweep(opened, settings, out, baseline=baseline, progress=progress, sensors=sensors)
    if add_forecasts is not None:
        report = add_forecasts(report, opened)
    finish(report, out, print_report, as_json=as_json, hint="the reasons stand in the report")
    if gate is not None and (problems := broken(report)):
        what, hint = (
            f"the gate {gate} does not hold: {'; '.join(problems)}",
            "ask more items where it is undecided, compress less, or allow a larger drop",
        )
        raise EdgeVLMError(what, str(out / "report.html"), hint)


def _forecaster(target: str) -> Callable[[Report, Sequence[Bundle]], Report]:
    """What puts forecasts into a report; made before measuring, since it needs the host half and a known target."""
    from edgevlm.cli.forecasts import with_forecasts
    from edgevlm.targets.host import find_target

    profile = find_target(target)
    return lambda report, bundles: with_forecasts(report, bundles, profile)


def numbers(text: str, option: str, least: int) -> list[int]:
    """`1,2,4` as whole numbers, in order.

    Raises:
        BadParameter: it is not of this form, one is out of range, or one stands there twice.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and least <= int(part) <= 8192 for part in parts) or len({*parts}) < len(parts):
        raise click.BadParameter(f"{text!r} is no list of different numbers from {least} to 8192", param_hint=option)
    return [int(part) for part in parts]


def size(text: str) -> tuple[int, int]:
    """`1024x768` as width and height.

    Raises:
        BadParameter: it is not of this form, or not between 1 and 8192.
    """
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdecimal() and 1 <= int(part) <= 8192 for part in parts):
        raise click.BadParameter(f"{text!r} is not WIDTHxHEIGHT", param_hint="--image-size")
    return int(parts[0]), int(parts[1])
