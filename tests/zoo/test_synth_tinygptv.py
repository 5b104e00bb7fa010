"""The synthetic TinyGPT-V has the published names and shapes, keeps activations alive, and loads."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from edgevlm.errors import InputError
from edgevlm.models import VlmModel, load
from edgevlm.zoo.synth import synth
from edgevlm.zoo.synth_tinygptv import SPECS, blip2, stage, vision

LAYOUTS = Path(__file__).parents[1] / "data" / "layouts"
PUBLISHED = SPECS["tinygpt-v"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("synth") / "tiny"
    synth("tinygpt-v", out, tiny=True)
    return out


@pytest.fixture(scope="module")
def model(folder: Path) -> VlmModel:
    return load(folder)


def layout(name: str) -> dict[str, tuple[int, ...]]:
    """Published tensor names and shapes."""
    return {key: tuple(shape) for key, shape in json.loads((LAYOUTS / f"{name}.json").read_text()).items()}


def test_the_stage_has_the_published_names_and_shapes() -> None:
    assert stage(PUBLISHED) == layout("tinygptv_stage4_trainables")


def test_the_encoder_has_the_published_names_and_shapes() -> None:
    """The published list is that of the assembled model: with prefix and `ln_vision`, positions for 448 pixels."""
    written = {f"visual_encoder.{name}": shape for name, shape in vision(PUBLISHED).items()}
    written |= {name: shape for name, shape in blip2(PUBLISHED).items() if name.startswith("ln_vision.")}
    assert written.pop("visual_encoder.pos_embed") == (1, 257, 1408)
    expected = layout("tinygptv_eva_448")
    assert expected.pop("visual_encoder.pos_embed") == (1, 1025, 1408)
    assert written == expected


def test_the_qformer_of_blip2_is_that_of_the_stage() -> None:
    published = {n: s for n, s in layout("tinygptv_stage4_trainables").items() if n.startswith(("Qformer", "query"))}
    assert {n: s for n, s in blip2(PUBLISHED).items() if n.startswith(("Qformer", "query"))} == published


def test_activations_neither_vanish_nor_explode(model: VlmModel) -> None:
    levels: dict[str, float] = {}

    def watch(name: str, module: torch.nn.Module) -> None:
        def hook(_module: object, _inputs: object, output: torch.Tensor | tuple[torch.Tensor, object]) -> None:
            value = output[0] if isinstance(output, tuple) else output
            levels[name] = float(value.square().mean().sqrt())

        module.register_forward_hook(hook)

    model.vision.float()
    model.decoder.float()
    for name, stack in (
        ("encoder", model.vision.get_submodule("encoder.layers")),
        ("projector", model.vision.get_submodule("projector.layers")),
        ("decoder", model.decoder.layers),
    ):
        for index, layer in enumerate(stack.children()):
            watch(f"{name}.{index}", layer)
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        image = model.vision(torch.randn(1, 3, 56, 56, generator=generator))
        text = model.decoder.embed_tokens(torch.arange(8)[None])
        x = torch.cat((text, image), dim=1)
        logits, _ = model.decoder(x, torch.arange(x.shape[1])[None])
    assert len(levels) == 6
    assert all(0.05 < level < 20 for level in levels.values()), levels
    assert 0.3 < float(logits.std()) < 20
    assert 0.2 < float(image.square().mean().sqrt() / text.square().mean().sqrt()) < 20


def test_no_weight_is_a_denormal_number_in_float16(folder: Path) -> None:
    pickled = [torch.load(path, weights_only=True) for path in sorted(folder.glob("*.pth"))]
    tensors = [value for data in pickled for value in data.get("model", data).values()]
    with safe_open(folder / "phi-2" / "model.safetensors", "pt") as file:
        tensors += [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118
    assert len(tensors) > 100
    assert min(float(tensor.abs().min()) for tensor in tensors) >= torch.finfo(torch.float16).smallest_normal


def test_same_seed_same_weights_and_another_seed_others(folder: Path, tmp_path: Path) -> None:
    synth("tinygpt-v", tmp_path / "again", tiny=True)
    synth("tinygpt-v", tmp_path / "other", tiny=True, seed=1)
    for name in ("eva_vit_g.pth", "blip2_pretrained_flant5xxl.pth", "stage4.pth", "phi-2/model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes(), name
        assert (tmp_path / "other" / name).read_bytes() != (folder / name).read_bytes(), name


def test_resolution_is_an_option_and_checked(tmp_path: Path) -> None:
    synth("tinygpt-v", tmp_path / "m", tiny=True, resolution=28)
    assert load(tmp_path / "m").spec.vision.image_size == 28
    with pytest.raises(InputError, match="multiple of 14"):
        synth("tinygpt-v", tmp_path / "bad", tiny=True, resolution=100)
    assert not (tmp_path / "bad").exists()
