"""`edgevlm zoo`: reference checkpoints and the accuracy set `scenes`, made on this machine."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import click

from edgevlm.errors import InputError
from edgevlm.progress import show_progress
from edgevlm.tables import print_table

_OUT = click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="Folder to write to.")
_FORCE = click.option("--force", is_flag=True, help="Replace what is at OUT.")
_SEED = click.option(
    "--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Seed of everything random."
)

_WITHOUT_END = 1 << 62


@click.group(name="zoo")
def command() -> None:
    """Make reference checkpoints and test images."""


@command.command(name="list")
def list_() -> None:
    """List the checkpoints that ship or can be made."""
    from edgevlm.zoo import models
    from edgevlm.zoo.synth import NAMES

    rows = [[f"zoo:{name}", "trained, ships with EdgeVLM"] for name in models()]
    rows += [[name, f"random weights: edgevlm zoo synth {name} -o DIR"] for name in NAMES]
    print_table(["name", "what it is"], rows)


@command.command()
@click.argument("name")
@_OUT
@click.option("--tiny", is_flag=True, help="The same layout with small sizes.")
@click.option("--resolution", type=int, help="Input pixels along one side.  [default: as published]")
@_SEED
@_FORCE
def synth(name: str, out: Path, tiny: bool, resolution: int | None, seed: int, force: bool) -> None:
    """Write checkpoint NAME in its published layout with random weights.

    Size, memory and speed are those of the real model; the answers are noise.
    """
    from edgevlm.zoo.synth import synth as write_synthetic

    with show_progress(f"zoo synth {name}") as report:
        write_synthetic(name, out, tiny=tiny, seed=seed, resolution=resolution, replace_existing=force, report=report)
    click.echo(out)


@command.command()
@click.argument("name", type=click.Choice(["nano-fastvlm", "nano-llava", "nano-llava-mini", "nano-tinygpt-v"]))
@_OUT
@click.option("--images", type=click.IntRange(min=1), help="Images to train on.  [default: as the shipped model]")
@click.option("--resume", is_flag=True, help="Go on where an interrupted training stopped.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads.  [default: all physical cores]")
@click.option("--work", type=click.Path(path_type=Path), help="Folder for the training's state.  [default: a cache]")
@_SEED
@_FORCE
def train(
    name: str,
    out: Path,
    images: int | None,
    resume: bool,
    threads: int | None,
    work: Path | None,
    seed: int,
    force: bool,
) -> None:
    """Train reference model NAME from nothing, on generated images.

    It takes hours on a CPU. Ctrl-C keeps the state; --resume goes on from there.
    """
    if not force and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError("the output already exists", str(out), "use --force to replace it, or choose another place")
    from edgevlm.zoo.train import train_nano

    with show_progress(f"zoo train {name}") as report:
        train_nano(name, out, seed=seed, resume=resume, images=images, threads=threads, workdir=work, report=report)
    click.echo(out)


@command.command()
@_OUT
@click.option("-n", "count", default=24, show_default=True, type=click.IntRange(min=1), help="Questions to write.")
@click.option("--split", default="test", show_default=True, type=click.Choice(["train", "calibration", "test"]))
@click.option("--type", "kind", help="Only questions of this type, such as number or colour.")
@_SEED
@_FORCE
def scenes(out: Path, count: int, split: str, kind: str | None, seed: int, force: bool) -> None:
    """Write images and questions of the accuracy set.

    OUT gets one PNG file an image and questions.jsonl, one question a line.
    """
    from PIL import Image

    from edgevlm.atomic import atomic_folder
    from edgevlm.zoo.scenes import TYPES
    from edgevlm.zoo.scenes import scenes as generate

    if kind is not None and kind not in TYPES:
        raise InputError(f"unknown question type {kind!r:.60}", "--type", f"use one of {', '.join(TYPES)}")
    wanted = (item for item in generate(split, _WITHOUT_END, seed) if kind in (None, item.type))
    with atomic_folder(out, replace=force) as folder, (folder / "questions.jsonl").open("w", encoding="utf-8") as lines:
        for item in islice(wanted, count):
            image = folder / f"{item.image_id}.png"
            if not image.exists():
                Image.fromarray(item.image).save(image)
            line = {"image": image.name, "type": item.type, "question": item.question, "answer": item.answer}
            lines.write(json.dumps(line) + "\n")
    click.echo(out)
