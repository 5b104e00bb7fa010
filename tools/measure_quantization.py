"""What each way to quantize the shipped decoders costs, as the tables of docs/measurements/quantization.md.

In: models and schemes. Out: for each, on items of the test split of `scenes`: the share of right answers, the KL
divergence of the answers' distributions from those of the float model and its paired difference from rounding at the
same bits, and the squared error of the layers' outputs; then the bundles that `edgevlm export` writes, asked the same
items. Every figure has its 95% interval. An answer is right where each of its tokens is the likeliest one behind those
before, which is what greedy decoding writes. What was measured lies in a folder, from which a run that was stopped goes
on. Run as

    python tools/measure_quantization.py -n 1000 -o out/quantization
"""

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import edgevlm
from edgevlm.atomic import write_text
from edgevlm.bench.pairs import delta_interval, wilson
from edgevlm.calibration import Calibration, Sample
from edgevlm.calibration.activations import IGNORE, Activations, embed
from edgevlm.calibration.answers import answer_logits
from edgevlm.calibration.layers import linear_groups, run_through
from edgevlm.calibration.moments import layer_moments
from edgevlm.calibration.scratch import Scratch
from edgevlm.calibration.sources import open_calibration
from edgevlm.calibration.statistics import relative_error
from edgevlm.models import VlmModel, load, resolve
from edgevlm.models.decoder import Decoder
from edgevlm.models.rebuild import with_decoder
from edgevlm.passes import PassContext
from edgevlm.pipeline import compile_recipe
from edgevlm.progress import show_progress
from edgevlm.quant.quantize import Quantize, QuantizeConfig
from edgevlm.quant.tensor import QuantizedTensor
from edgevlm.recipe import CalibrationData, PassEntry, Recipe
from edgevlm.zoo import models
from edgevlm.zoo.scenes import scenes

Values = NDArray[np.float64]
CALIBRATION = 128
SCHEMES = ("rtn", "hqq", "awq", "gptq", "awq-gptq")
#: Bits and group sizes of the decoders compared.
GRIDS = ((3, 32), (3, 128), (4, 128))
#: Bundles: what the row is called, and what `edgevlm export` is given.
BUNDLES: dict[str, dict[str, Any]] = {
    "fp32": {"precision": "fp32"},
    "w8a8": {"precision": "int8", "vision_precision": "w8a8", "passes": [{"scheme": "w8a8"}]},
    "w4-rtn": {"precision": "int4", "passes": [{"scheme": "w4-rtn"}]},
    "w4-awq": {"precision": "int4", "passes": [{"scheme": "w4-awq"}]},
    "w4-gptq": {"precision": "int4", "passes": [{"scheme": "w4-gptq"}]},
    "auto, 5 bits over everything": {
        "precision": "int4",
        "vision_precision": "int4",
        "passes": [{"scheme": "auto", "budget": "bits=5.0"}],
    },
}


def silent(*_: object) -> None:
    """Progress of a step that takes seconds."""


def test_samples(count: int) -> Calibration:
    """Items of the test split in the form that activations are made of."""

    def samples() -> Any:
        return (Sample(item.image, item.question, item.answer) for item in scenes("test", count))

    return Calibration(samples, count)


def answered(decoder: Decoder, activations: Activations, room: Activations) -> list[torch.Tensor]:
    """Log probabilities `[P, V]` at each item's answer, from states in front of the first layer."""
    room.restore(activations)
    run_through(decoder, room)
    return [answer_logits(decoder, room, item).log_softmax(1) for item in range(len(room))]


def right(rows: list[torch.Tensor], activations: Activations) -> Values:
    """1 for each item whose answer is right, else 0."""
    labels = [sequence.labels[sequence.labels != IGNORE] for sequence in activations.sequences]
    return np.array([float((row.argmax(1) == label).all()) for row, label in zip(rows, labels, strict=True)])


def divergence(expected: list[torch.Tensor], rows: list[torch.Tensor]) -> Values:
    """KL of each item, mean over its answer's tokens, in nats."""
    pairs = zip(expected, rows, strict=True)
    return np.array([float((p.double().exp() * (p - q).double()).sum(1).mean()) for p, q in pairs])


def rounded(model: VlmModel) -> Decoder:
    """The decoder with what its codes stand for."""
    numbers = {
        name: torch.from_numpy(tensor.dequantize())
        for name, tensor in model.quantized.items()
        if isinstance(tensor, QuantizedTensor)
    }
    return with_decoder(model, model.spec.decoder, numbers).decoder


def layer_error(model: VlmModel, calibration: Calibration) -> float:
    """Mean over the decoder's matrices of the squared error of their outputs over their squares."""
    errors = []
    for found in layer_moments(model, calibration, Scratch(1 << 30), silent):
        for group in linear_groups(found.layer):
            for name in group:
                tensor = model.quantized[f"layers.{found.index}.{name}.weight"]
                assert isinstance(tensor, QuantizedTensor)
                weight = found.layer.get_parameter(f"{name}.weight").data
                difference = torch.from_numpy(tensor.dequantize()) - weight
                errors.append(relative_error(difference, weight, found.moments[group[0]]))
    return float(np.mean(errors))


def schemes_of(name: str, bits: int, group: int, calibration: Calibration, tests: Calibration) -> list[Any]:
    """A row for the float model, and one for each algorithm at so many bits."""
    model = load(resolve(f"zoo:{name}"))
    front = embed(model, tests, Scratch(4 << 30), silent)
    room = front.copy(Scratch(4 << 30))
    expected = answered(model.decoder, front, room)
    rows = [{"scheme": "float", "right": right(expected, front).tolist(), "kl": [], "error": 0.0}]
    for algorithm in SCHEMES:
        config = QuantizeConfig(scheme=f"w{bits}-{algorithm}", group_size=group)
        changed = Quantize(config, seed=0).run(model, PassContext(calibration, model, silent))
        found = answered(rounded(changed), front, room)
        rows.append(
            {
                "scheme": config.scheme,
                "right": right(found, front).tolist(),
                "kl": divergence(expected, found).tolist(),
                "error": layer_error(changed, calibration),
            }
        )
    return rows


def bundle_row(name: str, label: str, count: int, folder: Path) -> dict[str, Any]:
    """What an exported bundle answers, its bits per weight and its bytes."""
    fields = {"calibration": CalibrationData(source="scenes", n=CALIBRATION), **BUNDLES[label]}
    fields["passes"] = tuple(
        PassEntry.model_validate({"name": "quantize", **each}) for each in fields.get("passes", ())
    )
    out = folder / "bundle"
    bundle = compile_recipe(Recipe(model=f"zoo:{name}", **fields), out, force=True, progress=silent)
    with edgevlm.load(out) as session:
        said = [
            session.generate(item.image, item.question, max_tokens=8).text == item.answer
            for item in scenes("test", count)
        ]
    held = [entry for entry in bundle.manifest.artifacts if entry.parameters]
    bits = sum(entry.bits_per_weight * entry.parameters for entry in held) / sum(entry.parameters for entry in held)
    return {"label": label, "right": said, "bits": bits, "bytes": sum(entry.bytes for entry in held)}


def kept(file: Path, make: Callable[[], Any]) -> Any:
    """What a run before this one measured, or else what is measured now."""
    if not file.is_file():
        write_text(file, json.dumps(make()))
    return json.loads(file.read_text(encoding="utf-8"))


def points(values: list[float], baseline: list[float], images: list[str]) -> str:
    """Difference in points with its interval."""
    delta = delta_interval([bool(v) for v in values], [bool(v) for v in baseline], images)
    return f"{100 * delta.value:+.1f} ({100 * delta.low:+.1f} to {100 * delta.high:+.1f})"


def percent(values: list[float]) -> str:
    """Share of at least one item, with its interval."""
    share = wilson(int(sum(values)), len(values))
    assert share.value is not None and share.low is not None and share.high is not None
    return f"{100 * share.value:.1f} ({100 * share.low:.1f} to {100 * share.high:.1f})"


def mean(values: Values) -> str:
    """Mean and 95% interval, in thousandths."""
    half = 1.96 * values.std(ddof=1) / len(values) ** 0.5
    return f"{1e3 * values.mean():.3f} ({1e3 * (values.mean() - half):+.3f} to {1e3 * (values.mean() + half):+.3f})"


def algorithm_table(rows: list[Any], images: list[str]) -> str:
    """Markdown."""
    lines = [
        "| scheme | right, % | points against float | KL, 1e-3 nats | KL less that of rtn | error of outputs |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    nearest = np.array(rows[1]["kl"])
    for row in rows:
        cells = [row["scheme"], percent(row["right"])]
        if row["kl"]:
            kl = np.array(row["kl"])
            less = "" if row is rows[1] else mean(kl - nearest)
            cells += [points(row["right"], rows[0]["right"], images), mean(kl), less, f"{row['error']:.2e}"]
        else:
            cells += [""] * 4
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def bundle_table(rows: list[Any], images: list[str]) -> str:
    """Markdown."""
    lines = ["| bundle | right, % | points against fp32 | bits per weight | MB |", "|---|---:|---:|---:|---:|"]
    for row in rows:
        delta = "" if row is rows[0] else points(row["right"], rows[0]["right"], images)
        lines.append(
            f"| {row['label']} | {percent(row['right'])} | {delta} | {row['bits']:.2f} | {row['bytes'] / 1e6:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure what has not been measured, and print the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("-n", type=int, default=1000)
    parser.add_argument("-o", "--out", type=Path, default=Path("out/quantization"))
    parser.add_argument("models", nargs="*", default=sorted(models()))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    calibration, tests = open_calibration("scenes", CALIBRATION), test_samples(given.n)
    images = [item.image_id for item in scenes("test", given.n)]
    tables = []
    count = len(given.models) * (len(GRIDS) + len(BUNDLES))
    rows: dict[str, list[Any]] = {}
    with show_progress("quantization") as report, torch.no_grad():
        for number, name in enumerate(given.models):
            for index, (bits, group) in enumerate(GRIDS):
                done = number * (len(GRIDS) + len(BUNDLES)) + index
                report(done, count, f"{name}: {bits} bits in groups of {group}")
                asked: Callable[[], Any] = partial(schemes_of, name, bits, group, calibration, tests)
                found = kept(given.out / f"{name}-{bits}-{group}-{given.n}.json", asked)
                tables.append(f"## {name}, {bits} bits in groups of {group}\n\n{algorithm_table(found, images)}")
            for index, label in enumerate(BUNDLES):
                done = number * (len(GRIDS) + len(BUNDLES)) + len(GRIDS) + index
                report(done, count, f"{name}: {label}")
                asked = partial(bundle_row, name, label, given.n, given.out)
                row = kept(given.out / f"{name}-bundle-{index}-{given.n}.json", asked)
                rows.setdefault(name, []).append(row)
    tables += [f"## {name}, bundles\n\n{bundle_table(each, images)}" for name, each in rows.items()]
    print("\n\n".join(tables))


if __name__ == "__main__":
    main()
