"""`edgevlm estimate`: the forecast of a model that need not be on this disk.

In: a recipe whose model is a checkpoint, or the name of a size that `edgevlm zoo synth` writes. Out: an `Estimate`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgevlm.errors import CheckpointError
from edgevlm.models import resolve
from edgevlm.pipeline.description import Description
from edgevlm.pipeline.planner import Estimate, Question, forecast_recipe
from edgevlm.recipe import Recipe
from edgevlm.targets.profile import Format, TargetProfile
from edgevlm.zoo.synth import NAMES, WHOLE, synth


def estimate(recipe: Recipe, target: TargetProfile, question: Question, format_: Format | None = None) -> Estimate:
    """Forecast a recipe on a target.

    Args:
        recipe: what is made of which model.
        target: the device.
        question: what is asked.
        format_: of the artefacts; None takes the recipe's.

    Raises:
        CheckpointError: the model cannot be described.
        InputError: the recipe or the question cannot be used.
        UnsupportedError: a pass does not fit the model, or the target does not run the format.
    """
    with _folder(recipe.model) as folder:
        described = Description.of(folder, recipe.resolution, recipe.prompt_template)
    return forecast_recipe(recipe, described, target, question, format_ or recipe.format)


@contextmanager
def _folder(model: str) -> Iterator[Path]:
    """The checkpoint's folder; for a size that `zoo synth` writes one whose weights are holes."""
    if model not in NAMES or Path(model).is_dir():
        yield resolve(model)
        return
    if model in WHOLE:
        hint = f"edgevlm zoo synth {model} -o DIR, then give DIR"
        raise CheckpointError(f"{model} cannot be described without its weights", model, hint)
    with tempfile.TemporaryDirectory(prefix="edgevlm-estimate-") as work:
        folder = Path(work) / model
        synth(model, folder, hollow=True)
        yield folder
