"""The mmproj file in llama.cpp's own image support, against the same weights in torch."""

import copy
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf_models import LLAMA, make_model
from numpy.typing import NDArray
from PIL import Image

from edgevlm.errors import UnsupportedError
from edgevlm.exporters.gguf.exporter import export
from edgevlm.exporters.gguf.mmproj import export_mmproj, projector_kind, supports
from edgevlm.models.projector import pixel_shuffle
from edgevlm.models.vit import Vit
from edgevlm.models.vlm import VlmModel, build_vision
from edgevlm.pipeline import compile_recipe
from edgevlm.preprocess import normalise, prepare
from edgevlm.recipe import Recipe
from edgevlm.spec import (
    AspectTiles,
    FastViTHDSpec,
    LinearProjectorSpec,
    MlpProjectorSpec,
    ModelSpec,
    PreprocessSpec,
    SplitTiles,
    TileSpec,
    VisionSpec,
    VitSpec,
)

SIZE, PATCH = 64, 16
CLIP = VitSpec(
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    patch_size=PATCH,
    grid=SIZE // PATCH,
    norm_eps=1e-5,
    activation="quick_gelu",
    class_token=True,
    patch_bias=False,
    pre_norm=True,
)
LLAVA = VisionSpec(CLIP, MlpProjectorSpec(96), SIZE, 16)
INTERNVL = VisionSpec(
    replace(CLIP, activation="gelu", patch_bias=True, pre_norm=False, layer_scale=True),
    MlpProjectorSpec(96, input_norm=True),
    SIZE,
    4,
    pixel_shuffle=2,
)
SMOLVLM = VisionSpec(
    replace(CLIP, activation="gelu_tanh", class_token=False, patch_bias=True, pre_norm=False, post_norm=True),
    LinearProjectorSpec(bias=False),
    SIZE,
    4,
    pixel_shuffle=2,
)
Picture = NDArray[np.uint8]
PREPROCESS = PreprocessSpec(SIZE, "crop", mean=(0.48, 0.46, 0.41), std=(0.27, 0.26, 0.28))


def with_vision(model: VlmModel, vision: VisionSpec) -> VlmModel:
    """The model with another vision side, of random weights at normal scale."""
    spec = replace(model.spec, vision=vision, preprocess=PREPROCESS)
    module = build_vision(spec).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in module.named_parameters():
        values = torch.randn(parameter.shape, generator=generator)
        scale = parameter[0].numel() ** -0.5 if parameter.dim() > 1 and "positions" not in name else 0.3
        parameter.copy_(values * scale + (1.0 if "norm" in name and name.endswith("weight") else 0.0))
    return replace(model, spec=spec, vision=module)


def mtmd(model: VlmModel, folder: Path, image: Picture) -> NDArray[np.float32]:
    """Embeddings of the image from llama.cpp."""
    (text,) = export(model, folder, gguf_type="f32", progress=lambda *_: None)
    (vision,) = export_mmproj(model, folder, precision="fp32", progress=lambda *_: None)
    np.save(folder / "image.npy", image, allow_pickle=False)
    script = Path(__file__).with_name("mtmd_oracle.py")
    paths = [folder / name for name in (text.path, vision.path, "image.npy", "out.npy")]
    subprocess.run([sys.executable, script, *paths], check=True, capture_output=True, timeout=120)
    return np.load(folder / "out.npy", allow_pickle=False)


@pytest.fixture
def image() -> Picture:
    return np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)


def class_token_last(model: VlmModel, pixels: torch.Tensor, dropped: int) -> torch.Tensor:
    """What llama.cpp computes since it puts the class token behind the patches but not so the positions.

    llama.cpp issue 25814. Of the sequence, N rows from `dropped` on are taken as the image.
    """
    encoder = copy.deepcopy(model.vision.encoder)
    assert isinstance(encoder, Vit)
    patches = encoder.patch(pixels).flatten(2).transpose(1, 2)
    x = encoder.pre_norm(torch.cat((patches, encoder.class_token.expand(1, 1, -1)), dim=1) + encoder.positions)
    for layer in encoder.layers:
        x = layer(x)
    features = x[:, dropped : dropped + patches.shape[1]]
    features = pixel_shuffle(features, model.vision.shuffle) if model.vision.shuffle > 1 else features
    return model.vision.projector(features)[0]  # type: ignore[no-any-return]


def cosines(a: NDArray[np.float32], b: torch.Tensor) -> float:
    """The smallest cosine of two sequences of embeddings, position by position."""
    assert a.shape == tuple(b.shape)
    return float(torch.nn.functional.cosine_similarity(torch.from_numpy(a), b).min())


@pytest.mark.parametrize(
    ("kind", "vision", "dropped"), [("mlp", LLAVA, 1), ("internvl", INTERNVL, 0), ("idefics3", SMOLVLM, None)]
)
def test_embeddings(
    kind: str, vision: VisionSpec, dropped: int | None, files: dict[str, Path], tmp_path: Path, image: Picture
) -> None:
    """llama.cpp's GELU is a table in float16, so the two are near, not equal; a wrong key or tensor is far off."""
    model = with_vision(make_model(LLAMA, files), vision)
    if kind == "idefics3":
        model = replace(model, spec=replace(model.spec, preprocess=replace(PREPROCESS, tiles=SplitTiles(SIZE))))
    assert projector_kind(model.spec) == kind
    found = mtmd(model, tmp_path, image)
    pixels = torch.from_numpy(normalise(image[None], PREPROCESS))
    # Idefics3 sees the whole image first, then its tiles.
    found = found[: vision.image_tokens]
    near = [cosines(found, model.vision(pixels)[0])]
    if dropped is not None:
        near.append(cosines(found, class_token_last(model, pixels, dropped)))
    assert max(near) > 0.999


@pytest.mark.parametrize(
    ("vision", "tiles"), [(SMOLVLM, SplitTiles(longest_edge=2 * SIZE)), (INTERNVL, AspectTiles(1, 2))]
)
def test_tiles(vision: VisionSpec, tiles: TileSpec, files: dict[str, Path], tmp_path: Path) -> None:
    """llama.cpp cuts a wide image into the tiles that the session cuts it into, and sees the whole once."""
    model = with_vision(make_model(LLAMA, files), vision)
    model = replace(model, spec=replace(model.spec, preprocess=replace(PREPROCESS, tiles=tiles)))
    wide = np.full((SIZE, 2 * SIZE, 3), 90, np.uint8)
    count = len(prepare(Image.fromarray(wide), model.spec.preprocess).tiles)
    assert count == 3
    assert len(mtmd(model, tmp_path, wide)) == count * vision.image_tokens


@pytest.mark.parametrize(
    "change",
    [
        {"encoder": replace(CLIP, keep_class_token=True)},
        {"encoder": replace(CLIP, layer_scale=True)},
        {"projector": LinearProjectorSpec(bias=True)},
        {"encoder": FastViTHDSpec()},
    ],
)
def test_what_llama_cpp_has_no_graph_for_is_refused(change: dict[str, object], files: dict[str, Path]) -> None:
    spec = make_model(LLAMA, files).spec
    assert supports(replace(spec, vision=LLAVA)) is None
    assert "no graph" in str(supports(replace(spec, vision=replace(LLAVA, **change))))  # type: ignore[arg-type]


def test_half_precision_halves_the_file(files: dict[str, Path], tmp_path: Path) -> None:
    model = with_vision(make_model(LLAMA, files), LLAVA)
    sizes = {}
    for precision in ("fp32", "fp16"):
        (artifact,) = export_mmproj(model, tmp_path, precision=precision, progress=lambda *_: None)  # type: ignore[arg-type]
        sizes[precision] = artifact.bits_per_weight
        assert artifact.parameters == sum(parameter.numel() for parameter in model.vision.parameters())
    assert sizes["fp32"] == 32
    assert 16 < sizes["fp16"] < 18


def test_a_bundle_holds_it(files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = with_vision(make_model(LLAMA, files), LLAVA)
    monkeypatch.setattr("edgevlm.pipeline.resolve", lambda _: tmp_path)
    monkeypatch.setattr("edgevlm.pipeline.load", lambda *_, **__: model)
    recipe = Recipe(model="tiny", format="gguf", precision="fp32", mmproj=True)
    bundle = compile_recipe(recipe, tmp_path / "out", progress=lambda *_: None)
    assert bundle.artifact("mmproj", ".gguf").name == "mmproj-f32.gguf"


def test_it_is_refused_before_any_work(tmp_path: Path, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(LLAMA, files)
    monkeypatch.setattr("edgevlm.pipeline.resolve", lambda _: tmp_path)

    def load(*_: object, accept: Callable[[ModelSpec], None], **__: object) -> VlmModel:
        accept(model.spec)
        raise AssertionError("the weights were wanted")

    monkeypatch.setattr("edgevlm.pipeline.load", load)
    for recipe in (Recipe(model="x", format="gguf", mmproj=True), Recipe(model="x", format="onnx", mmproj=True)):
        with pytest.raises(UnsupportedError, match="mmproj"):
            compile_recipe(recipe, tmp_path / "out", progress=lambda *_: None)
    assert not (tmp_path / "out").exists()
