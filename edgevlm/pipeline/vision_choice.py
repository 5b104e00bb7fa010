"""`vision_precision: auto`: static int8 where it is really faster on this machine, float16 storage elsewhere.

In: a model after its passes and calibration images. Out: the precision, the plan of static int8 where it was chosen,
and a sentence for people. Both vision sides are written to a scratch folder and timed in the engines that are here.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from edgevlm.bundle import open_bundle, write_manifest
from edgevlm.calibration import Calibration
from edgevlm.exporters import onnx
from edgevlm.models import VlmModel
from edgevlm.pipeline.manifest import make_manifest
from edgevlm.progress import Report, part_of
from edgevlm.quant.vision import StaticPlan, plan_vision
from edgevlm.recipe import Recipe, VisionPrecision
from edgevlm.runtimes.select import fastest_vision_ms

#: So many times as fast as in float32 static int8 must be, or it is not worth its rounding.
LEAST_GAIN = 1.2


@dataclass(frozen=True)
class Chosen:
    """What became of `auto`.

    Attributes:
        precision: `w8a8` or `fp16`.
        static: how `w8a8` computes.
        reason: both times, for people.
    """

    precision: VisionPrecision
    static: StaticPlan | None
    reason: str


def choose_vision(recipe: Recipe, model: VlmModel, calibration: Calibration | None, progress: Report) -> Chosen:
    """Measure both and take the faster.

    Raises:
        InputError: there are no calibration images.
        EngineError: no engine runs a vision side.
    """
    plan = plan_vision(model, calibration, part_of(progress, 0, 0.6))
    choices: tuple[tuple[VisionPrecision, StaticPlan | None], ...] = (("fp16", None), ("w8a8", plan))
    ms = []
    for index, (precision, static) in enumerate(choices):
        progress(0.6 + 0.2 * index, 1, f"how fast the vision tower is as {precision}")
        with tempfile.TemporaryDirectory(prefix="edgevlm-vision-") as name:
            folder = Path(name)
            artifacts = onnx.export_vision_part(
                model,
                folder,
                precision="fp32",
                vision_precision=precision,
                static=static,
                progress=lambda *_: None,
            )
            write_manifest(folder, make_manifest(recipe, model, {}, folder, artifacts))
            ms.append(fastest_vision_ms(open_bundle(folder)))
    gain = ms[0] / ms[1]
    reason = f"an image takes {ms[0]:.3g} ms in float32 and {ms[1]:.3g} ms in int8 here"
    if gain < LEAST_GAIN:
        return Chosen("fp16", None, f"vision tower computes in float32: {reason}")
    return Chosen("w8a8", plan, f"vision tower computes in int8: {reason}")
