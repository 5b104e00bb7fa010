"""`edgevlm estimate`: the forecast of a model that need not be on this disk.

In: a recipe whose model is a checkpoint, the name of a size that `edgevlm zoo synth` writes, or the hub id of a
checkpoint of such a size, which is then not downloaded. Out: an `Estimate`.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgevlm.errors import CheckpointError, UnsupportedError
from edgevlm.models import resolve
from edgevlm.pipeline.description import Description
from edgevlm.pipeline.passes import parse_passes
from edgevlm.pipeline.planner import Estimate, Question, forecast_recipe, storage_of
from edgevlm.pipeline.support import refusal
from edgevlm.recipe import Recipe
from edgevlm.spec import ModelSpec
from edgevlm.targets.profile import Format, TargetProfile
from edgevlm.zoo.synth import NAMES, WHOLE, synth

_FASTVLM = ("apple", "KamilaMila")

#: Hub ids of checkpoints whose sizes `zoo synth` knows.
PUBLISHED = {
    **{f"{owner}/FastVLM-{size}": f"fastvlm-{size.lower()}" for owner in _FASTVLM for size in ("0.5B", "1.5B", "7B")},
    "HuggingFaceTB/SmolVLM-256M-Instruct": "smolvlm-256m",
    "HuggingFaceTB/SmolVLM-500M-Instruct": "smolvlm-500m",
    "ICTNLP/llava-mini-llama-3.1-8b": "llava-mini-8b",
    "OpenGVLab/InternVL3-1B": "internvl3-1b",
    "OpenGVLab/InternVL3-1B-hf": "internvl3-1b",
    "Qwen/Qwen2-VL-2B-Instruct": "qwen2-vl-2b",
    "Tyrannosaurus/TinyGPT-V": "tinygpt-v",
    "liuhaotian/llava-v1.5-7b": "llava-1.5-7b",
    "llava-hf/llava-1.5-7b-hf": "llava-1.5-7b",
    "llava-hf/llava-onevision-qwen2-0.5b-ov-hf": "llava-onevision-0.5b",
    "llava-hf/llava-onevision-qwen2-0.5b-si-hf": "llava-onevision-0.5b",
}


def estimate(recipe: Recipe, target: TargetProfile, question: Question, format_: Format | None = None) -> Estimate:
    """Forecast a recipe on a target.

    Args:
        recipe: what is made of which model.
        target: the device.
        question: what is asked.
        format_: of the artefacts; None takes the recipe's, or where it names none, the first that runs on the target.

    Raises:
        CheckpointError: the model cannot be described.
        InputError: the recipe or the question cannot be used.
        UnsupportedError: a pass does not fit the model, or the target does not run the format.
    """
    with _folder(recipe.model) as folder:
        described = Description.of(folder, recipe.resolution, recipe.prompt_template)
    return forecast_recipe(recipe, described, target, question, format_ or _format(recipe, described.spec, target))


def _format(recipe: Recipe, spec: ModelSpec, target: TargetProfile) -> Format:
    """The recipe's format, or the target's first that can hold the model."""
    if "format" in recipe.model_fields_set:
        return recipe.format
    for format_ in target.formats:
        stored = storage_of(recipe, format_)
        reason = refusal(spec, format_, stored.precision, stored.gguf_type, stored.vision_precision)
        with contextlib.suppress(UnsupportedError):
            parse_passes(recipe.model_copy(update={"format": format_}))
            if reason is None:
                return format_
    return target.preferred_format


@contextmanager
def _folder(model: str) -> Iterator[Path]:
    """The checkpoint's folder; for a size that `zoo synth` writes one whose weights are holes."""
    size = PUBLISHED.get(model, model)
    if size not in NAMES or Path(model).is_dir():
        yield resolve(model)
        return
    if size in WHOLE:
        hint = f"edgevlm zoo synth {size} -o DIR, then give DIR"
        raise CheckpointError(f"{model} cannot be described without its weights", model, hint)
    with tempfile.TemporaryDirectory(prefix="edgevlm-estimate-") as work:
        folder = Path(work) / size
        synth(size, folder, hollow=True)
        yield folder
