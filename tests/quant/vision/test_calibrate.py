"""Plans of static int8: what they measure, what they fold, and what they leave in float."""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from pruned_models import run, scenes, silent
from static_vision import ENCODERS, planned, vlm
from torch import Tensor

from edgevlm import reference
from edgevlm.errors import InputError
from edgevlm.imageio import load_image
from edgevlm.models.vlm import VlmModel
from edgevlm.preprocess import PreparedImage, prepare
from edgevlm.pruning.tokens.prune_tokens import PruneTokens
from edgevlm.quant.vision import StaticPlan, plan_vision
from edgevlm.quant.vision.folded import effective, folded
from edgevlm.quant.vision.kept import rounded
from edgevlm.quant.vision.layers import groups, products
from edgevlm.quant.vision.ranges import BINS

plans = cache(lambda name: planned(vlm(name)))


def images(model: VlmModel, count: int = 24) -> Iterator[PreparedImage]:
    """Each picture of the calibration set once."""
    seen: set[bytes] = set()
    for sample in scenes(count).samples():
        image = prepare(load_image(sample.image), model.spec.preprocess)
        if image.key not in seen:
            seen.add(image.key)
            yield image


def features(model: VlmModel) -> np.ndarray:
    return np.stack([image.rows for image in reference.encoded_images(model, list(images(model)))])


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))


def inputs_of(model: VlmModel, layer: str) -> Tensor:
    """All that a layer sees of the calibration set, by a hook on the module itself."""
    seen: list[Tensor] = []
    module = model.vision.get_submodule(layer)
    handle = module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].flatten()))
    with torch.no_grad():
        for image in images(model):
            model.vision(torch.from_numpy(reference.normalise(image.tiles, model.spec.preprocess)))
    handle.remove()
    return torch.cat(seen)


@pytest.mark.parametrize("percent", [99.9, 99.7])
def test_scale_is_the_percentile_of_what_the_layer_sees(percent: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgevlm.quant.vision.ranges.PERCENTILES", (percent,))
    model, layer = vlm("clip"), "encoder.layers.1.fc2"
    values = inputs_of(model, layer).abs()
    by_hand = float(values.sort().values[int(np.ceil(len(values) * percent / 100)) - 1])
    found = planned(model).layers[layer].input_scale * 127
    assert abs(found - by_hand) <= 1.01 * float(values.max()) / BINS
    assert by_hand < 0.9 * float(values.max())


@pytest.mark.parametrize("name", ENCODERS)
def test_features_rounded_are_near_those_in_float(name: str) -> None:
    model, plan = vlm(name), plans(name)
    assert not plan.kept
    exact, found = features(model), features(rounded(model, plan.layers))
    assert 1e-4 < np.linalg.norm(found - exact) / np.linalg.norm(exact) < 0.06
    assert cosine(found, exact) > 0.998


def refolded(model: VlmModel, plan: StaticPlan) -> VlmModel:
    """The model with all that the plan folds, and nothing rounded."""
    twin = folded(model.vision, plan)
    for path in plan.layers:
        twin.get_submodule(path).weight = torch.nn.Parameter(effective(model.vision, plan, f"{path}.weight"))
    return replace(model, vision=twin)


@pytest.mark.parametrize("name", ENCODERS)
def test_folding_changes_no_feature(name: str) -> None:
    model, plan = vlm(name), plans(name)
    assert plan.divided
    found = features(refolded(model, plan))
    assert np.abs(found - features(model)).max() < 1e-4 * np.abs(found).max()


def test_values_kept_in_float_are_folded_for_what_mixes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    model = vlm("clip")
    kept = tuple(f"encoder.layers.0.attention.{part}_proj" for part in "qkv")
    monkeypatch.setattr("edgevlm.quant.vision.calibrate.keep_costly", lambda *_: (kept, 0.0))
    plan = planned(model)
    assert f"{kept[2]}.weight" in plan.divided
    assert "encoder.layers.0.norm1.weight" not in plan.divided
    assert not set(kept) & set(plan.layers)
    found = features(refolded(model, plan))
    assert np.abs(found - features(model)).max() < 1e-4 * np.abs(found).max()


def test_smoothing_is_used_where_a_norm_makes_a_channel_loud() -> None:
    plan = plans("clip")
    factors = plan.layers["encoder.layers.0.fc1"].factors
    assert factors is not None
    assert int(factors.argmax()) == 3
    assert plan.layers["encoder.layers.0.fc2"].factors is None


def test_products_of_convolutional_encoders() -> None:
    layers = plans("fastvithd").layers
    assert "encoder.network.0.0.convffn.fc1" in layers
    assert "encoder.patch_embed.2.reparam_conv" in layers
    assert "projector.linear_2" in layers
    # Pixels, depthwise convolutions, and what runs on one row an image.
    for name in ("patch_embed.0.reparam_conv", "network.0.0.token_mixer.reparam_conv", "conv_exp.se.reduce"):
        assert f"encoder.{name}" not in layers


@pytest.mark.parametrize("name", ENCODERS)
def test_every_product_is_in_one_group(name: str) -> None:
    vision = vlm(name).vision
    grouped = [layer for group in groups(vision) for layer in group.layers]
    assert sorted(grouped) == sorted(products(vision))


def test_the_same_again() -> None:
    first, second = plans("siglip"), planned(vlm("siglip"))
    assert first.kept == second.kept
    assert first.error == second.error
    assert {name: layer.input_scale for name, layer in first.layers.items()} == {
        name: layer.input_scale for name, layer in second.layers.items()
    }
    assert all(np.array_equal(first.divided[name], second.divided[name]) for name in first.divided)


def test_costly_layers_stay_in_float(monkeypatch: pytest.MonkeyPatch) -> None:
    model, all_rounded = vlm("siglip"), plans("siglip")
    goal = 0.5 * all_rounded.error
    monkeypatch.setattr("edgevlm.quant.vision.kept.MOST_ERROR", goal)
    plan = planned(model)
    assert plan.kept
    assert plan.layers
    assert plan.error <= goal
    assert set(plan.layers) | set(plan.kept) == set(products(model.vision))
    # They cost more than as many others.
    others = [name for name in all_rounded.layers if name not in plan.kept][-len(plan.kept) :]
    without = {name: layer for name, layer in all_rounded.layers.items() if name not in others}
    exact = features(model)
    assert np.linalg.norm(features(rounded(model, plan.layers)) - exact) < np.linalg.norm(
        features(rounded(model, without)) - exact
    )


def test_a_reducer_plays_no_part() -> None:
    model = vlm("clip")
    fewer = run(PruneTokens, model, None, method="uniform", keep=9)
    assert fewer.vision.reducer is not None
    plan = planned(fewer)
    assert {name: layer.input_scale for name, layer in plan.layers.items()} == {
        name: layer.input_scale for name, layer in plans("clip").layers.items()
    }


def test_bad_input_is_one_line() -> None:
    model = vlm("siglip")
    with pytest.raises(InputError, match="a vision tower in static int8 needs calibration images and there are none"):
        plan_vision(model, None, silent)
    model.vision.encoder.layers[1].norm2.bias[0] = float("nan")
    with pytest.raises(
        InputError, match=r"input of encoder\.layers\.1\.fc1 holds a value that is not finite"
    ) as caught:
        planned(model)
    assert "\n" not in caught.value.what
