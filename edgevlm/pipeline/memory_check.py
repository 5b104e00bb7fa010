"""Refuse an export for a device whose memory the model exceeds, before any work.

In: a recipe and the spec of its model. Out: nothing, or the forecast as an error.
"""

from __future__ import annotations

from pathlib import Path

from edgevlm.errors import UnsupportedError
from edgevlm.pipeline.description import Description
from edgevlm.pipeline.planner import Estimate, Question, forecast_recipe
from edgevlm.pipeline.tensorrt_choice import HERE
from edgevlm.recipe import Recipe
from edgevlm.spec import FramedLayout, ModelSpec
from edgevlm.targets.catalog import load_target
from edgevlm.tokenizer import Tokenizer

_SHORTEST_ANSWER = 1


def require_memory(recipe: Recipe, spec: ModelSpec, folder: Path) -> None:
    """Raise where the recipe's target has not the memory for its model; the machine at hand is not asked.

    Args:
        recipe: with its target.
        spec: of the model before its passes.
        folder: of the checkpoint, for its tokenizer.

    Raises:
        UnsupportedError: it does not fit, with what is short and what would help.
    """
    if recipe.target == HERE:
        return
    framed = isinstance(spec.prompt.image_layout, FramedLayout)
    described = Description(spec, Tokenizer(folder / "tokenizer.json") if framed else None)
    question = Question(text_tokens=0, answer_tokens=_SHORTEST_ANSWER)
    found = forecast_recipe(recipe, described, load_target(recipe.target), question, recipe.format)
    if not found.result.forecast.fits:
        raise UnsupportedError(_what(found), f"--target {recipe.target}", _hint(found))


def _what(found: Estimate) -> str:
    expected, device = found.result.forecast, found.target.title
    needs, has, short = (
        f"{size / 1e9:.1f} GB" for size in (expected.peak.total, expected.usable_bytes, expected.short_bytes)
    )
    return f"{found.model} needs {needs} and {device} has {has}: short by {short}"


def _hint(found: Estimate) -> str:
    """What would make it fit, and how to go on all the same."""
    would = [remedy.change for remedy in found.remedies] or [f"--target {name}" for name in found.larger_targets]
    words = [f"{' or '.join(would[:2])} would fit"] if would else []
    return "; ".join([*words, "`edgevlm estimate` shows the forecast", "--over-memory exports all the same"])
