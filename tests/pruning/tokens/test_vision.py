"""Reducers inside the vision side: what they are shown of an encoder, and where they stand."""

import dataclasses
from pathlib import Path
from typing import Any

import llava_models
import pytest
import torch
from reducer_models import CLIP, FASTVITHD, SIGLIP, vision_model, vision_spec
from specs import TINY
from torch import Tensor
from torch.nn import functional as F

from edgevlm.models import load
from edgevlm.models.fastvithd import SpatialAttention
from edgevlm.models.projector import build_projector
from edgevlm.models.taps import Taps
from edgevlm.models.vit import VitAttention
from edgevlm.models.vlm import VisionModel, VlmModel
from edgevlm.pruning.tokens import REDUCERS
from edgevlm.pruning.tokens.attention_scores import class_attention, received_attention
from edgevlm.spec import LdpSpec, VisionSpec


def model_of(spec: VisionSpec) -> VlmModel:
    """As much of a model as a reducer needs."""
    module = vision_model(spec)
    return VlmModel(dataclasses.replace(TINY, vision=spec), module, torch.nn.Identity(), {}, ())  # type: ignore[arg-type]


def pruned(model: VlmModel, name: str, keep: int) -> VlmModel:
    cls = REDUCERS[name]
    return cls.reduced(model, keep, cls.Options())


def test_the_last_layer_is_the_one_behind_llavas_features(tmp_path: Path) -> None:
    """transformers' `attentions[-2]`, since LLaVA takes `hidden_states[-2]` and what comes after it never runs."""
    oracle = llava_models.make(tmp_path, "llama")
    model = load(tmp_path)
    pixels = torch.randn(2, 3, llava_models.SIZE, llava_models.SIZE)
    tower = oracle.model.model.vision_tower
    tower.set_attn_implementation("eager")
    with torch.no_grad():
        wanted = tower(pixels, output_attentions=True).attentions
        seen = Taps((-2, -1))
        model.vision.float().encoder(pixels, seen)
    for layer in (-2, -1):
        torch.testing.assert_close(class_attention(seen.found[layer]), wanted[layer - 1][:, :, 0, 1:])
    received = wanted[-2].mean(dim=(1, 2))[:, 1:]
    torch.testing.assert_close(received_attention(seen.found[-1], model.spec.vision), received)


@pytest.mark.parametrize("spec", [vision_spec(CLIP), vision_spec(SIGLIP), vision_spec(FASTVITHD, side=4)])
def test_taps_are_what_the_layer_multiplies(spec: VisionSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[tuple[Tensor, Tensor]] = []
    honest = F.scaled_dot_product_attention

    def spy(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        used.append((query, key))
        return honest(query, key, value, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    model, pixels, seen = vision_model(spec), torch.randn(1, 3, spec.image_size, spec.image_size), Taps((-1, -2))
    features = model.encoder(pixels, seen)
    for layer in (-1, -2):
        assert seen.found[layer][0] is used[layer][0]
        assert seen.found[layer][1] is used[layer][1]
    assert set(seen.found) == {-1, -2}
    torch.testing.assert_close(features, model.encoder(pixels), rtol=0, atol=0)
    assert any(isinstance(part, VitAttention | SpatialAttention) for part in model.encoder.modules())


def test_the_class_feature_is_the_class_tokens_output() -> None:
    spec = vision_spec(CLIP)
    model, pixels, seen = vision_model(spec), torch.randn(1, 3, 48, 48), Taps((-1,))
    whole = model.encoder
    whole(pixels, seen)
    whole.spec = dataclasses.replace(CLIP, keep_class_token=True)
    assert seen.class_feature is not None
    torch.testing.assert_close(seen.class_feature, whole(pixels)[:, :1])


@pytest.mark.parametrize("name", ["uniform", "attention", "divprune", "gprune"])
def test_selectors_give_rows_of_the_whole_in_their_order(name: str) -> None:
    """Before the projector or behind it: the embeddings kept are the same."""
    model = model_of(vision_spec(FASTVITHD, side=4))
    pixels = torch.randn(3, 3, 256, 256)
    whole, few = model.vision(pixels), pruned(model, name, 5).vision(pixels)
    assert few.shape == (3, 5, 16)
    for all_rows, rows in zip(whole, few, strict=True):
        distance = (rows[:, None] - all_rows).abs().amax(dim=-1)
        places = distance.argmin(dim=1).tolist()
        assert distance.amin(dim=1).max() < 1e-5
        assert places == sorted(set(places))


def test_a_projector_that_joins_neighbours_sees_all_of_them() -> None:
    spec = dataclasses.replace(vision_spec(CLIP), projector=LdpSpec(2, side=3), image_tokens=9)
    plain = vision_model(vision_spec(CLIP))
    torch.manual_seed(0)
    module = VisionModel(plain.encoder, build_projector(spec, 16)).eval()
    model = dataclasses.replace(model_of(vision_spec(CLIP)), vision=module, spec=dataclasses.replace(TINY, vision=spec))
    pixels = torch.randn(1, 3, 48, 48)
    few = pruned(model, "uniform", 3).vision(pixels)
    torch.testing.assert_close(few, model.vision(pixels)[:, [1, 4, 7]])


def test_the_given_model_stays_as_it_is() -> None:
    model = model_of(vision_spec(CLIP))
    pixels = torch.randn(1, 3, 48, 48)
    before = model.vision(pixels)
    assert pruned(model, "pool", 4).vision(pixels).shape == (1, 4, 16)
    torch.testing.assert_close(model.vision(pixels), before, rtol=0, atol=0)
    assert model.vision.reducer is None
    assert model.spec.vision.image_tokens == 36


def test_resolution_is_another_resolution() -> None:
    model = model_of(vision_spec(FASTVITHD, side=4))
    smaller = pruned(model, "resolution", 4)
    assert (smaller.spec.vision.image_size, smaller.vision.reducer) == (128, None)
    pixels = torch.randn(1, 3, 128, 128)
    torch.testing.assert_close(smaller.vision(pixels), model.vision(pixels))
