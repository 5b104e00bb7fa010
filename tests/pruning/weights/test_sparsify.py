"""The pass `prune_weights` on whole models: shares, patterns, budgets, errors on real activations, refusals."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from pruned_models import changed_tensors, run, scenes, silent, states_of
from specs import TINY

from edgevlm.calibration import Calibration
from edgevlm.calibration.layers import linear_groups, walk
from edgevlm.calibration.statistics import SecondMoments, relative_error
from edgevlm.errors import InputError
from edgevlm.models import VlmModel, load, resolve
from edgevlm.passes import PassContext
from edgevlm.pipeline.passes import parse_passes, plan_passes
from edgevlm.pruning.weights.masks import Pattern, follows
from edgevlm.pruning.weights.sparsegpt import sparsegpt
from edgevlm.pruning.weights.sparsify import PruneWeights
from edgevlm.pruning.weights.wanda import magnitude, wanda
from edgevlm.recipe import PassEntry, Recipe
from edgevlm.zoo.synth import synth


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> VlmModel:
    """Random, tiny, stored in 16 bits."""
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    synth("fastvlm-0.5b", folder, tiny=True, resolution=128)
    return load(folder)


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    return scenes(6)


def matrices(model: VlmModel) -> dict[str, torch.Tensor]:
    """The decoder's linear weights."""
    state = model.decoder.state_dict()
    names = [name for group in linear_groups(model.decoder.layers[0]) for name in group]
    return {
        f"layers.{index}.{name}.weight": state[f"layers.{index}.{name}.weight"]
        for index in range(len(model.decoder.layers))
        for name in names
    }


def sparsity(model: VlmModel) -> float:
    weights = matrices(model).values()
    return sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
@pytest.mark.parametrize("budget", ["uniform", "ecoflap", "tamp"])
def test_the_target_is_met_and_nothing_else_changes(
    method: str, budget: str, model: VlmModel, calibration: Calibration
) -> None:
    before = {name: value.clone() for name, value in model.decoder.state_dict().items()}
    pruned = run(PruneWeights, model, calibration, method=method, sparsity=0.45, budget=budget)
    assert sparsity(pruned) == pytest.approx(0.45, abs=0.001)
    assert changed_tensors(model, pruned) == matrices(model).keys()
    assert all(weight.dtype == before[name].dtype for name, weight in pruned.decoder.state_dict().items())
    assert all(torch.equal(value, before[name]) for name, value in model.decoder.state_dict().items())
    assert "45.0% of the decoder's linear weights are zero" in pruned.spec.notes[-1]
    assert "dense runtimes gain nothing" in pruned.spec.notes[-1]


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_every_row_follows_the_pattern(method: str, model: VlmModel, calibration: Calibration) -> None:
    pruned = run(PruneWeights, model, calibration, method=method, sparsity="2:4")
    assert all(follows(weight, Pattern(2, 4)) for weight in matrices(pruned).values())
    assert sparsity(pruned) == pytest.approx(0.5, abs=0.001)
    assert not any(follows(weight, Pattern(2, 4)) for weight in matrices(model).values())


def test_budgets_divide_otherwise_and_stay_below_the_cap(model: VlmModel, calibration: Calibration) -> None:
    by_budget = {}
    for budget in ("uniform", "ecoflap", "tamp"):
        pruned = run(PruneWeights, model, calibration, method="magnitude", sparsity=0.5, budget=budget)
        state = pruned.decoder.state_dict()
        parts = [[state[name] for name in matrices(pruned) if f"layers.{i}." in name] for i in range(2)]
        shares = [sum(int((w == 0).sum()) for w in part) / sum(w.numel() for w in part) for part in parts]
        assert max(shares) < 0.601
        by_budget[budget] = [round(share, 3) for share in shares]
    assert by_budget["uniform"] == [0.5, 0.5]
    assert by_budget["ecoflap"] != by_budget["uniform"] != by_budget["tamp"]


def test_the_same_seed_gives_the_same_weights(model: VlmModel, calibration: Calibration) -> None:
    first, again = (
        run(PruneWeights, model, calibration, method="sparsegpt", sparsity=0.5, budget="ecoflap") for _ in range(2)
    )
    assert not changed_tensors(first, again)


def test_errors_on_real_activations_fall_from_magnitude_to_wanda_to_sparsegpt() -> None:
    """On the trained model, over all its layers, with the inputs that the unpruned model gives them."""
    trained = load(resolve("zoo:nano-fastvlm"))
    activations = states_of(trained, scenes(12))
    for target in (0.5, Pattern(2, 4)):
        totals = dict.fromkeys(("magnitude", "wanda", "sparsegpt"), 0.0)
        start = dataclasses.replace(activations, states=[states.clone() for states in activations.states])
        for step in walk(trained.decoder, start):
            for name, statistic in step.collect(SecondMoments).items():
                weight, moments = step.linear(name).weight.detach(), statistic.mean
                count = target if isinstance(target, Pattern) else int(target * weight.numel())
                pruned = {
                    "magnitude": magnitude(weight, count),
                    "wanda": wanda(weight, moments.diagonal(), count),
                    "sparsegpt": sparsegpt(weight, moments, count),
                }
                for method, new in pruned.items():
                    totals[method] += relative_error(weight - new, weight, moments)
        assert totals["sparsegpt"] < 0.8 * totals["wanda"], (target, totals)
        assert totals["wanda"] < totals["magnitude"], (target, totals)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "wanda", "sparsity": 1.0}, "between 0 and 1"),
        ({"method": "wanda", "sparsity": 0}, "between 0 and 1"),
        ({"method": "wanda", "sparsity": "4:2"}, "pattern n:m"),
        ({"method": "wander", "sparsity": 0.5}, "'magnitude', 'wanda' or 'sparsegpt'"),
        ({"method": "wanda", "sparsity": "2:4", "budget": "tamp"}, "tamp cannot divide it"),
        ({"method": "wanda"}, "required"),
    ],
)
def test_fields_that_say_nothing_sensible(fields: dict[str, Any], message: str) -> None:
    entry = PassEntry.model_validate({"name": "prune_weights", **fields})
    with pytest.raises(InputError, match=message) as caught:
        parse_passes(Recipe(model="m", passes=(entry,)))
    assert caught.value.hint


def test_images_are_needed_unless_magnitude_is_enough(model: VlmModel) -> None:
    def planned(**fields: Any) -> None:
        entry = PassEntry.model_validate({"name": "prune_weights", "sparsity": 0.5, **fields})
        plan_passes(parse_passes(Recipe(model="m", passes=(entry,))), TINY, None)

    planned(method="magnitude")
    for fields in ({"method": "wanda"}, {"method": "magnitude", "budget": "tamp"}):
        with pytest.raises(InputError, match="needs calibration images"):
            planned(**fields)
    made = PruneWeights(PruneWeights.Config(method="magnitude", sparsity=0.5), 0)
    assert sparsity(made.run(model, PassContext(None, model, silent))) == pytest.approx(0.5, abs=0.001)


def test_a_width_that_groups_do_not_divide_is_refused() -> None:
    odd = dataclasses.replace(TINY, decoder=dataclasses.replace(TINY.decoder, intermediate_size=50))
    made = PruneWeights(PruneWeights.Config(method="wanda", sparsity="2:4"), 0)
    assert made.applies_to(odd) == "its width 50 is not a multiple of 4"
    assert made.applies_to(TINY) is None


def test_large_models_spill_to_disk(model: VlmModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Changed weights and hidden states beyond the ceiling are mapped from files that leave nothing behind."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    few = scenes(3)
    tight = dataclasses.replace(few, memory=0)
    held = run(PruneWeights, model, few, method="wanda", sparsity=0.5)
    mapped = run(PruneWeights, model, tight, method="wanda", sparsity=0.5)
    assert not changed_tensors(held, mapped)
    assert list(tmp_path.iterdir()) == []
