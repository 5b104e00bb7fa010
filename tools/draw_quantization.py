"""Draw what tools/measure_quantization.py measured: the KL divergence of each algorithm, on each shipped model.

In: its folder. Out: an SVG with a line for each model and grid, and on it a dot with its 95% interval for each
algorithm. Run as

    python tools/draw_quantization.py out/quantization docs/measurements/quantization.svg
"""

import argparse
import json
from pathlib import Path

import numpy as np

from edgevlm.atomic import write_text
from edgevlm.bench.render.axes import Axis
from edgevlm.bench.render.study import standalone
from edgevlm.bench.render.svg import Canvas

ALGORITHMS = {"rtn": "s1", "hqq": "s4", "awq": "s5", "gptq": "s2", "awq-gptq": "s3"}
NAMES = {"rtn": "RTN", "hqq": "HQQ", "awq": "AWQ", "gptq": "GPTQ", "awq-gptq": "GPTQ after AWQ"}
WIDTH, LEFT, RIGHT, TOP, STEP = 1080.0, 270.0, 30.0, 40.0, 40.0
#: Dots of a line stand apart by so many pixels, that their intervals do not cover each other.
APART = 6.0


def drawn(files: list[Path]) -> str:
    """The picture of these measurements."""
    height = TOP + STEP * len(files) + 50
    canvas = Canvas(WIDTH, height, "KL divergence of the answers from those of the float model, by algorithm")
    lines = [(file, _means(json.loads(file.read_text(encoding="utf-8")))) for file in files]
    bounds = [bound for _, means in lines for mean, half in means.values() for bound in (mean - half, mean + half)]
    axis = Axis(min(bounds) / 1.3, max(bounds) * 1.3, LEFT, WIDTH - RIGHT, logarithmic=True)
    bottom = TOP + STEP * len(files)
    for tick in axis.ticks(0):
        canvas.line(axis.at(tick), TOP - 8, axis.at(tick), bottom, "grid")
        if f"{tick:e}".startswith("1.0"):
            canvas.text(axis.at(tick), bottom + 18, f"{tick:.0e}".replace("e-0", "e-"), "axis", "middle")
    canvas.text((LEFT + WIDTH - RIGHT) / 2, bottom + 40, "KL divergence, nats a token of the answer", "axis", "middle")
    for index, (file, means) in enumerate(lines):
        y = TOP + STEP * (index + 0.5)
        *model, bits, group, _ = file.stem.split("-")
        canvas.text(LEFT - 14, y + 4, f"{'-'.join(model)}, {bits} bits, groups of {group}", "axis", "end")
        for place, (algorithm, (mean, half)) in enumerate(means.items()):
            here = y + APART * (place - (len(means) - 1) / 2)
            canvas.line(axis.at(mean - half), here, axis.at(mean + half), here, "whisker")
            tip = f"{NAMES[algorithm]}: {mean:.2e} ± {half:.1e}"
            canvas.circle(axis.at(mean), here, 4, ALGORITHMS[algorithm], tip=tip, data=mean)
    x = LEFT
    for algorithm, css in ALGORITHMS.items():
        canvas.circle(x + 4, TOP - 24, 4, css)
        canvas.text(x + 14, TOP - 20, NAMES[algorithm], "axis")
        x += 150
    return standalone(canvas.markup())


def _means(rows: list[dict[str, object]]) -> dict[str, tuple[float, float]]:
    """Algorithm -> mean KL and half of its 95% interval."""
    found = {}
    for row in rows[1:]:
        kl = np.array(row["kl"], np.float64)
        found[str(row["scheme"]).split("-", 1)[1]] = (float(kl.mean()), float(1.96 * kl.std(ddof=1) / len(kl) ** 0.5))
    return found


def main() -> None:
    """Draw."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    write_text(given.out, drawn(sorted(given.folder.glob("*-[34]-*-*.json"))))


if __name__ == "__main__":
    main()
