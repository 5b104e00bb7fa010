"""Synthetic checkpoints must have the published layout and weights that keep activations alive."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from edgevlm.errors import InputError
from edgevlm.models import load
from edgevlm.zoo.synth import SPECS, layout, synth

LAYOUTS = Path(__file__).parents[1] / "data" / "layouts"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("synth") / "tiny"
    synth("fastvlm-0.5b", out, tiny=True)
    return out


@pytest.mark.parametrize("name", sorted(SPECS))
def test_full_size_layout_is_the_published_one(name: str) -> None:
    size = name.removeprefix("fastvlm-")
    published = json.loads((LAYOUTS / f"fastvlm_apple_{size}.json").read_text())
    if SPECS[name].decoder.tied_embeddings:
        del published["lm_head.weight"]
    assert {key: list(shape) for key, shape in layout(SPECS[name]).items()} == published


def test_it_loads_and_activations_neither_vanish_nor_explode(tiny: Path) -> None:
    model = load(tiny)
    levels: dict[str, float] = {}

    def watch(name: str, module: torch.nn.Module) -> None:
        def hook(_module: object, _inputs: object, output: torch.Tensor | tuple[torch.Tensor, object]) -> None:
            value = output[0] if isinstance(output, tuple) else output
            levels[name] = float(value.square().mean().sqrt())

        module.register_forward_hook(hook)

    for index, block in enumerate(model.vision.float().encoder.network):
        watch(f"network.{index}", block)
    for index, layer in enumerate(model.decoder.float().layers):
        watch(f"layers.{index}", layer)
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        image = model.vision(torch.rand(1, 3, 256, 256, generator=generator))
        text = model.decoder.embed_tokens(torch.arange(8)[None])
        x = torch.cat((text, image), dim=1)
        logits, _ = model.decoder(x, torch.arange(x.shape[1])[None])
    assert len(levels) == 11 + 2
    assert all(0.05 < level < 20 for level in levels.values()), levels
    assert 0.3 < float(logits.std()) < 20
    assert 0.2 < float(image.square().mean().sqrt() / text.square().mean().sqrt()) < 20


def test_no_weight_is_a_denormal_number_in_any_16_bit_format(tiny: Path) -> None:
    with safe_open(tiny / "model.safetensors", "pt") as file:
        for name in file.keys():  # noqa: SIM118  (safe_open has no __iter__)
            tensor = file.get_tensor(name)
            if tensor.is_floating_point():
                assert float(tensor.abs().min()) >= torch.finfo(torch.float16).smallest_normal, name


def test_same_seed_same_bytes_and_another_seed_others(tiny: Path, tmp_path: Path) -> None:
    synth("fastvlm-0.5b", tmp_path / "again", tiny=True)
    synth("fastvlm-0.5b", tmp_path / "other", tiny=True, seed=1)
    first = (tiny / "model.safetensors").read_bytes()
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == first
    assert (tmp_path / "other" / "model.safetensors").read_bytes() != first


def test_untied_sizes_have_a_head_of_their_own(tmp_path: Path) -> None:
    synth("fastvlm-7b", tmp_path / "m", tiny=True)
    assert not load(tmp_path / "m").spec.decoder.tied_embeddings


def test_resolution_is_an_option_and_checked(tmp_path: Path) -> None:
    synth("fastvlm-0.5b", tmp_path / "m", tiny=True, resolution=128)
    assert load(tmp_path / "m").spec.vision.image_tokens == 4
    with pytest.raises(InputError, match="multiple of 64"):
        synth("fastvlm-0.5b", tmp_path / "bad", tiny=True, resolution=100)
    with pytest.raises(InputError, match="unknown checkpoint"):
        synth("fastvlm-2b", tmp_path / "bad", tiny=True)
    assert not (tmp_path / "bad").exists()


def test_a_failure_half_way_leaves_nothing(tmp_path: Path) -> None:
    def stop(_done: float, _total: float, name: str) -> None:
        if "network" in name:
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        synth("fastvlm-0.5b", tmp_path / "m", tiny=True, report=stop)
    assert list(tmp_path.iterdir()) == []
