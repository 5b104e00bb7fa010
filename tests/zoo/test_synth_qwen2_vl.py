"""The synthetic Qwen2-VL has the published names and shapes, keeps activations alive, and exports."""

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from edgevlm.errors import InputError
from edgevlm.models import VlmModel, load, qwen2_vl
from edgevlm.zoo.synth import synth
from edgevlm.zoo.synth_qwen2_vl import SPECS, _configuration, layout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("synth") / "tiny"
    synth("qwen2-vl-2b", out, tiny=True)
    return out


@pytest.fixture(scope="module")
def model(folder: Path) -> VlmModel:
    loaded = load(folder)
    loaded.vision.float()
    loaded.decoder.float()
    return loaded


def test_full_size_layout_is_that_of_transformers() -> None:
    """Both name sets as names of the IR, which both layouts map to."""
    spec = SPECS["qwen2-vl-2b"]
    with torch.device("meta"):
        theirs = Qwen2VLForConditionalGeneration(Qwen2VLConfig(**_configuration(spec, None)["config.json"]))
    expected = {qwen2_vl.ir_name(name): tuple(value.shape) for name, value in theirs.state_dict().items()}
    del expected["decoder.lm_head.weight"]
    assert {qwen2_vl.ir_name(name): shape for name, shape in layout(spec).items()} == expected


def test_special_tokens_have_their_published_places(folder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    start = tokenizer.token_to_id("<|endoftext|>")
    assert tokenizer.token_to_id("<|im_end|>") - start == 151645 - 151643
    assert tokenizer.token_to_id("<|vision_start|>") - start == 151652 - 151643
    assert tokenizer.token_to_id("<|image_pad|>") - start == 151655 - 151643


def test_activations_neither_vanish_nor_explode(model: VlmModel) -> None:
    levels: dict[str, float] = {}

    def watch(name: str, module: torch.nn.Module) -> None:
        def hook(_module: object, _inputs: object, output: torch.Tensor | tuple[torch.Tensor, object]) -> None:
            value = output[0] if isinstance(output, tuple) else output
            levels[name] = float(value.square().mean().sqrt())

        module.register_forward_hook(hook)

    for index, block in enumerate(model.vision.encoder.blocks):
        watch(f"blocks.{index}", block)
    for index, layer in enumerate(model.decoder.layers):
        watch(f"layers.{index}", layer)
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        image = model.vision(torch.randn(48, 1176, generator=generator), torch.tensor([[1, 8, 6]]))
        text = model.decoder.embed_tokens(torch.arange(8)[None])
        x = torch.cat((text, image), dim=1)
        logits, _ = model.decoder(x, torch.arange(x.shape[1]).expand(3, 1, -1))
    assert len(levels) == 2 + 2
    assert all(0.05 < level < 20 for level in levels.values()), levels
    assert 0.3 < float(logits.std()) < 20
    assert 0.2 < float(image.square().mean().sqrt() / text.square().mean().sqrt()) < 20


def test_its_sections_are_the_published_ones() -> None:
    assert SPECS["qwen2-vl-2b"].decoder.rope_sections == (16, 24, 24)


def test_resolution_bounds_the_pixels_and_is_checked(tmp_path: Path) -> None:
    synth("qwen2-vl-2b", tmp_path / "m", tiny=True, resolution=224)
    patches = load(tmp_path / "m").spec.preprocess.patches
    assert patches is not None
    assert patches.max_pixels == 224**2
    with pytest.raises(InputError, match="multiple of 28"):
        synth("qwen2-vl-2b", tmp_path / "bad", tiny=True, resolution=100)
    assert not (tmp_path / "bad").exists()
