"""MobileVLM: its projectors against the published blocks, whole models against transformers with such a projector."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from llava_models import TEMPLATES, VISION, edit, llama_tokenizer, text_config
from safetensors.torch import load_file, save_file
from tiled_models import QUESTIONS, Oracle, check_bundle, check_run, randomise
from torch import Tensor, nn

from edgevlm import pipeline
from edgevlm.errors import CheckpointError
from edgevlm.models import load
from edgevlm.models.ldp import LdpProjector
from edgevlm.models.mobilevlm import projector_name
from edgevlm.recipe import Recipe
from edgevlm.spec import LdpSpec

SIZE, PATCH, WIDTH, SQUEEZE = 96, 4, 64, 16


class MapNorm(nn.LayerNorm):
    """Over the channels of a map."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(1, 3)).transpose(1, 3)


class Gate(nn.Module):
    """Squeeze-and-excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(WIDTH, SQUEEZE, 1), nn.Conv2d(SQUEEZE, WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * nn.functional.hardsigmoid(self.fc2(self.fc1(x.mean((2, 3), keepdim=True)).relu()))


class Block(nn.Module):
    """An inverted residual, by its published names."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        depthwise = nn.Conv2d(WIDTH, WIDTH, 3, stride, 1, groups=WIDTH, bias=False)
        pointwise = nn.Conv2d(WIDTH, WIDTH, 1, bias=False)
        self.stride = stride
        self.block = nn.Sequential(
            nn.Sequential(depthwise, MapNorm(WIDTH), nn.Hardswish()),
            Gate(),
            nn.Sequential(pointwise, MapNorm(WIDTH)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x) + x if self.stride == 1 else self.block(x)  # type: ignore[no-any-return]


def holder(name: str, module: nn.Module) -> nn.ModuleDict:
    """A module with one child, for a name with one more part."""
    return nn.ModuleDict({name: module})


class First(nn.Module):
    """`ldpnet`."""

    def __init__(self) -> None:
        super().__init__()
        mlp = nn.Sequential(nn.Identity(), nn.Linear(32, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))
        self.model = nn.ModuleDict({"mlp": mlp, "mb_block": nn.Sequential(nn.Identity(), Block(1), Block(2))})

    def forward(self, features: Tensor) -> Tensor:
        maps = self.model["mlp"](features).transpose(1, 2).unflatten(2, (24, 24))
        return self.model["mb_block"](maps).flatten(2).transpose(1, 2)  # type: ignore[no-any-return]


class Second(nn.Module):
    """`ldpnetv2`."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = holder("mlp", nn.Sequential(nn.Linear(32, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH)))
        self.peg = holder("peg", nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 3, 1, 1, groups=WIDTH)))

    def forward(self, features: Tensor) -> Tensor:
        maps = self.mlp["mlp"](features).transpose(1, 2).unflatten(2, (24, 24))
        means = nn.AdaptiveAvgPool2d((12, 12))(maps)
        return (self.peg["peg"](means) + means).flatten(2).transpose(1, 2)  # type: ignore[no-any-return]


def make(folder: Path, projector: str, *, seed: int = 0) -> Oracle:
    """A checkpoint with the tower inside; transformers' LLaVA with another projector computes what it does."""
    tokenizer = llama_tokenizer(folder)
    from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    vision: Any = CLIPVisionConfig(**{**VISION, "image_size": SIZE, "patch_size": PATCH})
    text: Any = text_config("llama")
    image_token = tokenizer.convert_tokens_to_ids("<image>")
    model: Any = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, image_token_index=image_token)
    )
    model.model.multi_modal_projector = First() if projector == "ldpnet" else Second()
    randomise(model, seed)
    renames = (
        ("model.language_model.", "model."),
        ("model.vision_tower.", "model.vision_tower.vision_tower.vision_model."),
        ("model.multi_modal_projector.", "model.mm_projector."),
    )
    state = {}
    for name, value in model.state_dict().items():
        new = next((to + name.removeprefix(old) for old, to in renames if name.startswith(old)), name)
        state[new] = value.contiguous()
    save_file(state, folder / "model.safetensors")
    flat = {
        **model.config.text_config.to_dict(),
        "model_type": "mobilevlm",
        "mm_vision_tower": "openai/clip-vit-tiny",
        "vision_tower_type": "clip",
        "mm_hidden_size": 32,
        "mm_projector_type": projector,
        "image_aspect_ratio": "pad",
    }
    (folder / "config.json").write_text(json.dumps(flat))
    (folder / "vision_tower").mkdir()
    (folder / "vision_tower" / "config.json").write_text(json.dumps(vision.to_dict()))
    images: Any = LlavaImageProcessorPil(
        size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}, do_pad=True
    )
    # A quarter of the patches become tokens.
    return Oracle(folder, model, LlavaProcessor(images, tokenizer, 2 * PATCH, "default", num_additional_image_tokens=1))


@pytest.mark.parametrize("projector", ["ldpnet", "ldpnetv2"])
def test_mobilevlm_equals_transformers(projector: str, tmp_path: Path) -> None:
    oracle = make(tmp_path, projector)
    model = load(tmp_path)
    assert model.spec.vision.image_tokens == 144
    for name in ("portrait", "two"):
        check_run(oracle, model, TEMPLATES["llama"], QUESTIONS[name])


def test_the_first_projector_equals_the_published_blocks(tmp_path: Path) -> None:
    """torchvision's inverted residual and timm's norm, which the published code is made of."""
    environment = {**os.environ, "PYTHONPATH": str(Path(sys.prefix) / "oracle")}
    script = Path(__file__).with_name("ldp_oracle.py")
    run = subprocess.run(
        [sys.executable, script, tmp_path], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert run.returncode == 0, run.stderr[-3000:]
    tensors = load_file(tmp_path / "ldp.safetensors")
    features, expected = tensors.pop("features"), tensors.pop("outputs")
    state = {projector_name(name): value for name, value in tensors.items()}
    squeeze = state["blocks.0.squeeze.weight"].shape[0]
    projector = LdpProjector(LdpSpec(1, squeeze_channels=squeeze), features.shape[2], expected.shape[2]).eval()
    projector.load_state_dict(state)
    with torch.no_grad():
        torch.testing.assert_close(projector(features), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("form", "projector", "seed"), [("onnx", "ldpnetv2", 4), ("gguf", "ldpnet", 3)])
def test_bundles_answer_like_transformers(form: Any, projector: str, seed: int, tmp_path: Path) -> None:
    (tmp_path / "checkpoint").mkdir()
    oracle = make(tmp_path / "checkpoint", projector, seed=seed)
    recipe = Recipe(model=str(oracle.folder), format=form, precision="fp32")
    pipeline.compile_recipe(recipe, tmp_path / "out", progress=lambda *_: None)
    check_bundle(oracle, tmp_path / "out", TEMPLATES["llama"])


@pytest.mark.parametrize(("projector", "tokens"), [("ldpnet", 36), ("ldpnetv2", 144)])
def test_another_resolution_changes_the_first_projectors_tokens_alone(
    projector: str, tokens: int, tmp_path: Path
) -> None:
    make(tmp_path, projector)
    model = load(tmp_path, resolution=SIZE // 2)
    with torch.no_grad():
        embeddings = model.vision(torch.rand(1, 3, SIZE // 2, SIZE // 2))
    assert embeddings.shape == (1, tokens, WIDTH)
    assert model.spec.vision.image_tokens == tokens


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mm_projector_type": "ldpnetv3"}, "mm_projector_type 'ldpnetv3'"),
        ({"mm_projector_type": "ldpnet"}, "mb_block.1.block.1.fc1.weight is missing"),
        ({"mm_vision_select_feature": "cls_patch"}, "is no square map"),
    ],
)
def test_configurations_that_do_not_fit_are_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    make(tmp_path, "ldpnetv2")
    edit(tmp_path / "config.json", **change)
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path)
