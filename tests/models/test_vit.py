"""The one ViT against transformers' CLIP and SigLIP towers, for every hidden state that a model may take."""

from typing import Any

import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel, SiglipVisionConfig, SiglipVisionModel

from edgevlm.errors import CheckpointError
from edgevlm.models.loading import named_tensors
from edgevlm.models.tensors import assign, check_names_and_shapes
from edgevlm.models.vit import Vit
from edgevlm.models.vit_names import image_size, read_vit, vit_name

SIZES = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
TOWERS = {"clip": (CLIPVisionModel, CLIPVisionConfig), "siglip": (SiglipVisionModel, SiglipVisionConfig)}


def random_tower(kind: str, **changes: Any) -> Any:
    """A transformers tower with weights that make every norm, bias and position matter."""
    model, config = TOWERS[kind]
    tower = model(config(**{**SIZES, **changes})).eval()
    generator = torch.Generator().manual_seed(3)
    for name, parameter in tower.named_parameters():
        values = torch.randn(parameter.shape, generator=generator)
        matrix = parameter.dim() > 1 and "embedding.weight" not in name
        centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        parameter.data = values / parameter[0].numel() ** 0.5 if matrix else centre + 0.3 * values
    return tower


def ours(tower: Any, prefix: str = "", **choice: Any) -> Vit:
    """The tower as our module, through its configuration and tensor names."""
    spec = read_vit(tower.config.to_dict(), "config.json", **choice)
    state = {prefix + name: value for name, value in tower.state_dict().items()}
    names = named_tensors({name: tuple(value.shape) for name, value in state.items()}, lambda n: vit_name(n, spec), "")
    with torch.device("meta"):
        vit = Vit(spec)
    expected = {name: tuple(value.shape) for name, value in vit.state_dict().items()}
    check_names_and_shapes(expected, {name: tuple(state[names[name]].shape) for name in names}, set(), names, "")
    assign(vit, {name: state[source] for name, source in names.items()}, "")
    return vit


def check(vit: Vit, expected: torch.Tensor, pixels: torch.Tensor) -> None:
    assert expected.std() > 0.1
    torch.testing.assert_close(vit(pixels), expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("layer", [-1, -2, -4, 0, 2])
@pytest.mark.parametrize("kind", TOWERS)
def test_hidden_states_equal_transformers(kind: str, layer: int) -> None:
    tower, pixels = random_tower(kind), torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = tower(pixels, output_hidden_states=True).hidden_states[layer]
        if kind == "clip":
            check(ours(tower, feature_layer=layer), expected[:, 1:], pixels)
        check(ours(tower, feature_layer=layer, class_token=True), expected, pixels)


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu", "gelu_pytorch_tanh"])
def test_the_last_hidden_state_is_behind_siglips_norm(activation: str) -> None:
    tower, pixels = random_tower("siglip", hidden_act=activation, layer_norm_eps=1e-3), torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        expected = tower(pixels).last_hidden_state
        check(ours(tower, "vision_model.", feature_layer=-1, post_norm=True), expected, pixels)


def test_patches_that_do_not_cover_the_image_are_left_out() -> None:
    tower, pixels = random_tower("siglip", image_size=30), torch.rand(1, 3, 30, 30)
    assert image_size(tower.config.to_dict(), "") == 30
    with torch.no_grad():
        check(ours(tower, feature_layer=-1), tower(pixels, output_hidden_states=True).hidden_states[-1], pixels)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "dinov2"}, "vision model type 'dinov2'"),
        ({"hidden_act": "relu"}, "hidden_act"),
        ({"num_channels": 4}, "num_channels 4"),
        ({"num_attention_heads": 5}, "do not fit"),
        ({"patch_size": 64}, "do not fit"),
        ({"num_hidden_layers": 1}, "feature layer -3"),
    ],
)
def test_other_towers_are_refused_by_name(change: dict[str, Any], message: str) -> None:
    raw = {**CLIPVisionConfig(**SIZES).to_dict(), **change}
    with pytest.raises(CheckpointError, match=message):
        read_vit(raw, "config.json", feature_layer=-3)


def test_an_unknown_tensor_is_named() -> None:
    spec = read_vit({"model_type": "clip_vision_model"}, "", feature_layer=-2)
    assert vit_name("vision_model.encoder.layers.11.mlp.fc1.bias", spec) is None
    assert vit_name("vision_model.encoder.layers.10.mlp.fc1.bias", spec) == "layers.10.fc1.bias"
    with pytest.raises(CheckpointError, match=r"layers\.0\.mlp\.gate"):
        vit_name("encoder.layers.0.mlp.gate.weight", spec)
