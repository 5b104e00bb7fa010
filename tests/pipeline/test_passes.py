"""Passes of a recipe: what cannot work is refused by name, before anything is loaded; the rest runs in order."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from pydantic import BaseModel, ConfigDict, Field
from specs import TINY

from edgevlm import pipeline
from edgevlm.calibration import Calibration, Sample
from edgevlm.errors import InputError, UnsupportedError
from edgevlm.models import VlmModel, load
from edgevlm.passes import Pass, PassContext, Stage
from edgevlm.pipeline import passes as registry
from edgevlm.pipeline.passes import parse_passes, plan_passes
from edgevlm.recipe import PassEntry, Recipe
from edgevlm.spec import ModelSpec
from edgevlm.zoo.synth import synth


class Config(BaseModel):
    model_config = ConfigDict(extra="forbid")
    layers: int = Field(default=1, ge=1)


class Drop(Pass[Config]):
    """Drops the last decoder layers."""

    name, stage, Config = "drop", Stage.STRUCTURE, Config

    def applies_to(self, spec: ModelSpec) -> str | None:
        left = spec.decoder.num_hidden_layers - self.config.layers
        return None if left > 0 else f"it has only {spec.decoder.num_hidden_layers} layers"

    def planned(self, spec: ModelSpec) -> ModelSpec:
        layers = spec.decoder.num_hidden_layers - self.config.layers
        return dataclasses.replace(spec, decoder=dataclasses.replace(spec.decoder, num_hidden_layers=layers))

    def run(self, model: VlmModel, context: PassContext) -> VlmModel:
        del context
        with torch.device("meta"):
            decoder = type(model.decoder)(self.planned(model.spec).decoder)
        kept = {name: model.decoder.state_dict()[name] for name in decoder.state_dict()}
        decoder.load_state_dict(kept, assign=True)
        return dataclasses.replace(model, spec=self.planned(model.spec), decoder=decoder)


class Narrow(Drop):
    name, stage, repeats = "narrow", Stage.QUANTIZATION, True
    excludes: ClassVar = {"thin": "both choose the grid"}


class Thin(Drop):
    name, stage, needs_calibration = "thin", Stage.QUANTIZATION, True


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {cls.name: f"{__name__}:{cls.__name__}" for cls in (Drop, Narrow, Thin)}
    monkeypatch.setattr(registry, "PASSES", names)


def recipe(*entries: dict[str, Any], model: str = "nowhere") -> Recipe:
    return Recipe(model=model, precision="fp32", passes=tuple(PassEntry.model_validate(entry) for entry in entries))


@pytest.mark.parametrize(
    ("entries", "what", "where", "hint"),
    [
        ([{"name": "drops"}], "no pass 'drops'", "passes.0", "did you mean drop?"),
        ([{"name": "drop"}, {"name": "narrow", "layer": 2}], "narrow field 'layer'", "passes.1", "fields: layers"),
        ([{"name": "drop", "layers": 0}], "drop field 'layers'", "passes.0", "fields: layers"),
        ([{"name": "narrow"}, {"name": "drop"}], "drop cannot come after narrow", "passes", "put drop before narrow"),
        ([{"name": "drop"}, {"name": "drop"}], "drop stands twice", "passes", "keep one"),
        ([{"name": "narrow"}, {"name": "thin"}], "narrow and thin exclude", "passes", "keep one"),
        ([{"name": "thin"}, {"name": "narrow"}], "thin and narrow exclude", "passes", "keep one"),
    ],
)
def test_a_recipe_that_cannot_work_is_refused_before_its_model_is_looked_for(
    entries: list[dict[str, Any]], what: str, where: str, hint: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as caught:
        pipeline.compile_recipe(recipe(*entries), tmp_path / "out", progress=lambda *_: None)
    assert what in caught.value.what
    assert where in caught.value.where
    assert hint in caught.value.hint
    assert caught.value.exit_code == 2


def test_a_pass_is_planned_on_what_the_passes_before_it_leave() -> None:
    first = {"name": "drop", "layers": TINY.decoder.num_hidden_layers - 1}
    planned = plan_passes(parse_passes(recipe(first)), TINY, None)
    assert planned.decoder.num_hidden_layers == 1
    with pytest.raises(UnsupportedError, match="narrow cannot be used on tiny: it has only 1 layers"):
        plan_passes(parse_passes(recipe(first, {"name": "narrow"})), TINY, None)


def test_a_pass_that_needs_images_says_so() -> None:
    def samples() -> Iterator[Sample]:
        return iter(())

    passes = parse_passes(recipe({"name": "thin"}))
    for calibration in (None, Calibration(samples, 0)):
        with pytest.raises(InputError, match="thin needs calibration images"):
            plan_passes(passes, TINY, calibration)
    assert plan_passes(passes, TINY, Calibration(samples, 1)).decoder.num_hidden_layers == 1


def test_the_bundle_is_of_the_model_after_its_passes(tmp_path: Path) -> None:
    """Verified against it, too: the original's answers would differ."""
    synth("fastvlm-0.5b", tmp_path / "tiny", tiny=True, resolution=128)
    entries = [{"name": "drop"}]
    asked = recipe(*entries, model=str(tmp_path / "tiny"))
    full = load(tmp_path / "tiny").spec
    bundle = pipeline.compile_recipe(asked, tmp_path / "out", progress=lambda *_: None)
    assert bundle.spec.decoder.num_hidden_layers == full.decoder.num_hidden_layers - 1
    assert bundle.manifest.recipe["passes"] == entries
    assert all(result.passed for result in bundle.manifest.parity)
