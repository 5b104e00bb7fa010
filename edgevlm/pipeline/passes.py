"""The passes of a recipe: found by name, their fields checked, illegal orders refused, run one after the other.

In: the entries of `Recipe.passes` and a `ModelSpec`; everything that can be refused is refused from these, before
weights are read. Out: passes, and the model that they make.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

from pydantic import ValidationError

from edgevlm.calibration import Calibration
from edgevlm.errors import InputError, UnsupportedError
from edgevlm.exporters.base import Progress
from edgevlm.models import VlmModel
from edgevlm.passes import Pass, PassContext, Stage
from edgevlm.recipe import PassEntry, Recipe
from edgevlm.spec import ModelSpec
from edgevlm.validation import first_problem

#: Name -> module and class. A new pass is a class and a line here.
PASSES: dict[str, str] = {
    "prune_tokens": "edgevlm.pruning.tokens.prune_tokens:PruneTokens",
    "prune_weights": "edgevlm.pruning.weights.sparsify:PruneWeights",
    "shortgpt": "edgevlm.pruning.weights.shortgpt:ShortGpt",
    "ffn_width": "edgevlm.pruning.weights.ffn_width:FfnWidth",
    "vocab": "edgevlm.pruning.weights.vocab:TrimVocabulary",
    "heal": "edgevlm.pruning.weights.heal:Heal",
    "quantize": "edgevlm.quant.quantize:Quantize",
    "kv_cache": "edgevlm.quant.quantize_cache:QuantizeCache",
}

#: Why nothing of an earlier stage may follow a pass of this stage.
_LAST_WORD = {
    Stage.TOKENS: "",
    Stage.STRUCTURE: "what it measured would change with the image tokens",
    Stage.SPARSITY: "the share of zeros would change with what is removed",
    Stage.HEALING: "what was trained would be damaged again",
    Stage.QUANTIZATION: "quantized weights are final",
}
#: So many unreadable images are named, the others counted.
_NAMED = 5
_WHERE = "recipe field 'passes'"


def parse_passes(recipe: Recipe) -> list[Pass[Any]]:
    """The recipe's passes in order, their fields checked and their order found legal.

    Raises:
        InputError: there is no such pass, or a field is unknown or out of range.
        UnsupportedError: the passes cannot stand together, or not in this order.
    """
    passes = [_parse(entry, recipe.seed, f"recipe field 'passes.{index}'") for index, entry in enumerate(recipe.passes)]
    for each in passes:
        reason = each.fits(recipe)
        if reason is not None:
            raise UnsupportedError(f"{each.name} does not fit the recipe: {reason}", _WHERE, f"see {each.page}")
    for earlier, later in combinations(passes, 2):
        _check_pair(earlier, later)
    return passes


def plan_passes(passes: Sequence[Pass[Any]], spec: ModelSpec, calibration: Calibration | None) -> ModelSpec:
    """The spec after all passes.

    Raises:
        UnsupportedError: a pass does not fit the model.
        InputError: a pass needs calibration data and there are none.
    """
    for each in passes:
        reason = each.applies_to(spec)
        if reason is not None:
            raise UnsupportedError(f"{each.name} cannot be used on {spec.name}: {reason}", _WHERE, f"see {each.page}")
        if each.needs_calibration and (calibration is None or not calibration.count):
            what = f"{each.name} needs calibration images and there are none"
            raise InputError(what, _WHERE, "add --calibrate scenes, or a folder of images")
        spec = each.planned(spec)
    return spec


def run_passes(
    passes: Sequence[Pass[Any]], model: VlmModel, calibration: Calibration | None, progress: Progress
) -> VlmModel:
    """The model after all passes, which have been planned for it.

    Raises:
        EdgeVLMError: a pass failed.
    """
    original = model
    for index, each in enumerate(passes):
        report = _share(progress, each.name, index, len(passes))
        report(0, 1, "begins")
        model = each.run(model, PassContext(calibration, original, report))
        if each.stage == Stage.TOKENS:
            original = model
    return _say_what_was_skipped(model, calibration)


def settled(recipe: Recipe, passes: Sequence[Pass[Any]]) -> Recipe:
    """The recipe with what its passes chose when they ran, so that it makes the same again without choosing."""
    pairs = zip(recipe.passes, passes, strict=True)
    return recipe.model_copy(update={"passes": tuple(each.settled() or entry for entry, each in pairs)})


def _say_what_was_skipped(model: VlmModel, calibration: Calibration | None) -> VlmModel:
    """A note for people on the calibration images that could not be read."""
    if calibration is None or not calibration.skipped:
        return model
    shown = ", ".join(calibration.skipped[:_NAMED])
    more = f" and {len(calibration.skipped) - _NAMED} more" if len(calibration.skipped) > _NAMED else ""
    count = len(calibration.skipped)
    note = f"calibrated without {count} image{'s' if count > 1 else ''} that cannot be read: {shown}{more}"
    return replace(model, spec=replace(model.spec, notes=(*model.spec.notes, note)))


def _share(progress: Progress, name: str, index: int, count: int) -> Progress:
    """Reports of one pass as a share of all."""

    def report(done: float, total: float, what: str) -> None:
        progress(index + (done / total if total else 1), count, f"{name}: {what}")

    return report


def _parse(entry: PassEntry, seed: int, where: str) -> Pass[Any]:
    if entry.name not in PASSES:
        near = difflib.get_close_matches(entry.name, PASSES, n=1, cutoff=0.4)
        guess = f"did you mean {near[0]}? " if near else ""
        raise InputError(f"there is no pass {entry.name!r}", where, f"{guess}passes: {', '.join(PASSES)}")
    module, _, name = PASSES[entry.name].partition(":")
    cls: type[Pass[Any]] = getattr(importlib.import_module(module), name)
    try:
        config = cls.Config.model_validate(entry.fields)
    except ValidationError as error:
        field, problem = first_problem(error)
        fields = ", ".join(cls.Config.model_fields) or "none"
        raise InputError(f"{entry.name} field {field!r}: {problem}", where, f"fields: {fields}") from error
    return cls(config, seed)


def _check_pair(earlier: Pass[Any], later: Pass[Any]) -> None:
    """Refuse two passes that stand in this order in one recipe."""
    if earlier.name == later.name and not earlier.repeats:
        raise UnsupportedError(f"{later.name} stands twice in the recipe", _WHERE, "keep one of them")
    reason = earlier.excludes.get(later.name) or later.excludes.get(earlier.name)
    if reason:
        raise UnsupportedError(f"{earlier.name} and {later.name} exclude each other: {reason}", _WHERE, "keep one")
    if later.stage < earlier.stage:
        raise UnsupportedError(
            f"{later.name} cannot come after {earlier.name}: {_LAST_WORD[earlier.stage]}",
            _WHERE,
            f"put {later.name} before {earlier.name}",
        )
