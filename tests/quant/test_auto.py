"""`scheme: auto` on a shipped model: budgets are kept by the files, reproducible, and refused where they cannot be."""

from pathlib import Path
from typing import Any

import pytest

from edgevlm.bundle import Bundle
from edgevlm.errors import InputError
from edgevlm.pipeline import compile_recipe
from edgevlm.pipeline.passes import parse_passes
from edgevlm.recipe import CalibrationData, PassEntry, Recipe

MODEL = "zoo:nano-fastvlm"


@pytest.fixture(scope="module", autouse=True)
def _one_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Statistics of the model are collected once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def recipe(budget: str, **fields: Any) -> Recipe:
    entry = PassEntry.model_validate({"name": "quantize", "scheme": "auto", "budget": budget, **fields})
    return Recipe(
        model=MODEL, passes=(entry,), vision_precision="int8", calibration=CalibrationData(source="scenes", n=12)
    )


def bits(bundle: Bundle) -> float:
    """Of all weights, as counted when they were written."""
    weights = [entry for entry in bundle.manifest.artifacts if entry.parameters]
    return sum(entry.bits_per_weight * entry.parameters for entry in weights) / sum(e.parameters for e in weights)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("bundles") / "bits"
    return compile_recipe(recipe("bits=6.3"), out, progress=lambda *_: None)


def test_files_keep_within_the_bits_and_use_them(bundle: Bundle) -> None:
    assert 6.0 < bits(bundle) <= 6.3
    (entry,) = bundle.manifest.recipe["passes"]
    assert len(set(entry["layers"])) > 1


def test_the_manifests_recipe_makes_the_same_files_without_a_search(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("searched again")

    monkeypatch.setattr("edgevlm.quant.auto.search", refuse)
    again = compile_recipe(Recipe.model_validate(bundle.manifest.recipe), tmp_path / "again", progress=lambda *_: None)
    hashes = [{entry.path: entry.sha256 for entry in each.manifest.artifacts} for each in (bundle, again)]
    assert hashes[0] == hashes[1]


def test_a_loose_bound_takes_the_smallest_schemes(bundle: Bundle, tmp_path: Path) -> None:
    loose = compile_recipe(recipe("kl=1"), tmp_path / "loose", progress=lambda *_: None)
    assert bits(loose) < bits(bundle)
    (entry,) = loose.manifest.recipe["passes"]
    assert {*entry["layers"], entry["tables"]} == {"w4-gptq:128"}


def test_answers_on_the_calibration_samples_decide_for_accuracy(tmp_path: Path) -> None:
    out = compile_recipe(recipe("accuracy_drop=0.1"), tmp_path / "drop", progress=lambda *_: None)
    assert out.spec.notes[-1].startswith("auto: layers ")
    assert bits(out) < 8.5


@pytest.mark.parametrize(
    ("budget", "message"), [("size=1MB", "cannot be that small"), ("kl=1e-12", "no choice of schemes loses so little")]
)
def test_a_budget_that_cannot_be_met_writes_nothing(budget: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        compile_recipe(recipe(budget), tmp_path / "out", progress=lambda *_: None)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "fields",
    [{"group_size": 32}, {"symmetric": False}, {"layers": ["w4-gptq:128"]}, {"layers": ["q9"], "tables": "w8"}],
)
def test_fields_that_contradict_each_other_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="quantize field"):
        parse_passes(recipe("bits=6", **fields))
