"""Accuracy on `scenes` of a model after passes on its weights, as the rows of docs/measurements/weight-pruning.md.

In: a model and rows such as `prune_weights:method=wanda,sparsity=0.5`, several passes joined by `+`. Out: a line of the
table for each row: weights, zeros, the share of right answers with the paired difference from the original and its 95%
interval, and seconds; then what the passes noted. Run as

    python tools/measure_weight_pruning.py -n 1000 zoo:nano-fastvlm shortgpt:layers=1+heal:steps=2000,n=4000
"""

import argparse
import time
from collections import defaultdict
from itertools import islice

import numpy as np
import torch
import yaml

from edgevlm.calibration import Calibration
from edgevlm.calibration.activations import embed
from edgevlm.calibration.layers import walk
from edgevlm.calibration.scratch import Scratch
from edgevlm.calibration.sources import open_calibration
from edgevlm.calibration.statistics import SecondMoments, relative_error
from edgevlm.models import VlmModel, load, resolve
from edgevlm.pipeline.passes import parse_passes, plan_passes, run_passes
from edgevlm.progress import show_progress
from edgevlm.pruning.weights.masks import Pattern
from edgevlm.pruning.weights.sparsegpt import sparsegpt
from edgevlm.pruning.weights.wanda import magnitude, wanda
from edgevlm.recipe import PassEntry, Recipe
from edgevlm.zoo.evaluate import answers
from edgevlm.zoo.scenes import scenes

_CHUNK = 192


def passes_of(row: str) -> tuple[PassEntry, ...]:
    """`name:field=value,...` joined by `+` as entries of a recipe."""
    entries = []
    for part in row.split("+"):
        name, _, fields = part.partition(":")
        pairs = [pair.split("=", 1) for pair in fields.split(",") if pair]
        entries.append(PassEntry.model_validate({"name": name, **{k: _value(v) for k, v in pairs}}))
    return tuple(entries)


def _value(text: str) -> object:
    return text if ":" in text else yaml.safe_load(text)


@torch.no_grad()
def right(model: VlmModel, n: int) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """Which of `n` test items are answered exactly."""
    model.vision.float()
    model.decoder.float()
    stream, found = scenes("test", n), []
    while items := list(islice(stream, _CHUNK)):
        found += [said == item.answer for said, item in zip(answers(model, items), items, strict=True)]
    return np.array(found)


@torch.no_grad()
def print_errors(model: VlmModel, calibration: Calibration) -> None:
    """Squared error of the layers' outputs over their squares, on the inputs that the unpruned model gives them."""
    activations = embed(model, calibration, Scratch(calibration.memory), lambda *_: None)
    targets: dict[str, float | Pattern] = {"50%": 0.5, "70%": 0.7, "2:4": Pattern(2, 4)}
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for step in walk(model.decoder, activations):
        for name, statistic in step.collect(SecondMoments).items():
            weight, moments = step.linear(name).weight, statistic.mean
            for label, target in targets.items():
                count = target if isinstance(target, Pattern) else int(target * weight.numel())
                pruned = {
                    "magnitude": magnitude(weight, count),
                    "wanda": wanda(weight, moments.diagonal(), count),
                    "sparsegpt": sparsegpt(weight, moments, count),
                }
                for method, new in pruned.items():
                    found[method, label].append(relative_error(weight - new, weight, moments))
    print("| mean relative squared error | " + " | ".join(targets) + " |\n|---|---:|---:|---:|")
    for method in ("magnitude", "wanda", "sparsegpt"):
        print(f"| {method} | " + " | ".join(f"{np.mean(found[method, label]):.4f}" for label in targets) + " |")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Measure passes on weights.")
    parser.add_argument("model")
    parser.add_argument("rows", nargs="*")
    parser.add_argument("--errors", action="store_true", help="also of the three methods that make zeros")
    parser.add_argument("-n", type=int, default=1000, help="test questions")
    parser.add_argument("--calibrate", type=int, default=128, help="calibration samples")
    arguments = parser.parse_args()
    folder = resolve(arguments.model)
    if arguments.errors:
        print_errors(load(folder), open_calibration("scenes", arguments.calibrate))
    if not arguments.rows:
        return
    original = right(load(folder), arguments.n)
    calibration = open_calibration("scenes", arguments.calibrate)
    print(f"{arguments.model}, {arguments.n} questions; the original answers {100 * original.mean():.1f}%")
    print(
        "| passes | decoder weights | zeros | right, % | difference, points | seconds |\n|---|---:|---:|---:|---:|---:|"
    )
    notes: list[str] = []
    for row in arguments.rows:
        passes = parse_passes(Recipe(model=arguments.model, passes=passes_of(row)))
        model, begun = load(folder), time.monotonic()
        plan_passes(passes, model.spec, calibration)
        with show_progress(row) as report:
            model = run_passes(passes, model, calibration, report)
        seconds = time.monotonic() - begun
        weights = list(model.decoder.parameters())
        total, zeros = sum(w.numel() for w in weights), sum(int((w == 0).sum()) for w in weights)
        found = right(model, arguments.n)
        difference = 100 * (found.astype(float) - original)
        half = 1.96 * difference.std(ddof=1) / len(difference) ** 0.5
        low, high = difference.mean() - half, difference.mean() + half
        shown = f"{difference.mean():+.1f} ({low:+.1f} to {high:+.1f})"
        share = f"{zeros / total:.0%}"
        print(f"| `{row}` | {total:,} | {share} | {100 * found.mean():.1f} | {shown} | {seconds:.0f} |", flush=True)
        notes += [f"- `{row}`: {note}" for note in model.spec.notes]
    print("\n" + "\n".join(notes))


if __name__ == "__main__":
    main()
