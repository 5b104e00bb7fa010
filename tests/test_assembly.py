"""What images become in a prompt equals what transformers makes of them; the count is known before the encoder runs."""

import io
import sys
import types
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from specs import TINY

from edgevlm.assembly import ImageAssembler
from edgevlm.bundle import ArtifactEntry, Bundle, Manifest, sha256_file
from edgevlm.errors import BundleError
from edgevlm.feature_rows import NEWLINE_ROLE, load_newline
from edgevlm.preprocess import PreparedImage
from edgevlm.spec import AspectTiles, FramedLayout, ModelSpec, PreprocessSpec, RowsLayout
from edgevlm.spec.reading import build
from edgevlm.tiling import best_pinpoint
from edgevlm.tokenizer import Tokenizer
from edgevlm.zoo.tokenizer import build_tokenizer

sys.modules.setdefault("torchvision._meta_registrations", types.ModuleType("_meta_registrations"))

SIDE, HIDDEN, TILE = 5, TINY.decoder.hidden_size, 35
PINPOINTS = tuple((h * TILE, w * TILE) for h in range(1, 5) for w in range(1, 5))
FRAMED = FramedLayout("<fake><row_{row}_col_{column}>", "\n", "\n", "<fake><global>", "<fake>")
SIZES = [(64, 64), (640, 480), (480, 640), (1, 1), (2000, 3), (3, 2000), (333, 100), (1000, 990), (141, 140)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    from tokenizers import AddedToken

    backend = build_tokenizer()
    names = ["<fake>", "<global>", *(f"<row_{r}_col_{c}>" for r in range(1, 5) for c in range(1, 5))]
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    backend.save(str(path))
    return Tokenizer(path)


def model(layout: RowsLayout | FramedLayout | None) -> ModelSpec:
    vision = replace(TINY.vision, image_tokens=SIDE**2)
    return replace(TINY, vision=vision, prompt=replace(TINY.prompt, image_layout=layout))


def image(tiles: int, rows: int = 1, columns: int = 1, width: int = 9, height: int = 9) -> PreparedImage:
    return PreparedImage(np.zeros((tiles, 1, 1, 3), np.uint8), width, height, rows, columns)


def features(tiles: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal((tiles, SIDE**2, HIDDEN), dtype=np.float32)


@pytest.mark.parametrize("budget", [9, 2])
def test_rows_equal_transformers(budget: int, tokenizer: Tokenizer) -> None:
    from transformers.models.llava_onevision.modeling_llava_onevision import LlavaOnevisionModel
    from transformers.models.llava_onevision.processing_llava_onevision import LlavaOnevisionProcessor

    newline = np.random.default_rng(1).standard_normal(HIDDEN, dtype=np.float32)
    assembler = ImageAssembler(model(RowsLayout(budget)), tokenizer, newline)
    pinpoints = [list(pinpoint) for pinpoint in PINPOINTS]
    vision = SimpleNamespace(image_size=TILE, patch_size=TILE // SIDE)
    packer: Any = SimpleNamespace(config=SimpleNamespace(vision_config=vision, image_grid_pinpoints=pinpoints))
    counter: Any = SimpleNamespace(
        image_processor=SimpleNamespace(image_grid_pinpoints=pinpoints),
        num_image_tokens=SIDE**2,
        vision_aspect_ratio=f"anyres_max_{budget}",
        _get_unpadded_features=lambda *sizes: LlavaOnevisionProcessor._get_unpadded_features(counter, *sizes),
    )
    shrunk = 0
    for width, height in SIZES:
        canvas_height, canvas_width = best_pinpoint(width, height, PINPOINTS)
        rows, columns = canvas_height // TILE, canvas_width // TILE
        prepared = image(1 + rows * columns, rows, columns, width, height)
        values = features(len(prepared.tiles), seed=width)
        (actual,) = assembler.pieces(values, prepared)
        (expected,), _ = LlavaOnevisionModel.pack_image_features(
            packer, [torch.from_numpy(values)], [(height, width)], torch.from_numpy(newline), f"anyres_max_{budget}"
        )
        np.testing.assert_allclose(actual, expected.numpy(), atol=1e-5, rtol=0, err_msg=f"{width} x {height}")
        assert assembler.positions(prepared) == len(actual)
        assert len(actual) == LlavaOnevisionProcessor._get_number_of_features(counter, height, width, TILE, TILE)
        shrunk += rows * columns > budget
    assert shrunk


def test_one_tile_of_several_images_ends_with_a_newline(tokenizer: Tokenizer) -> None:
    newline = np.arange(HIDDEN, dtype=np.float32)
    assembler = ImageAssembler(model(RowsLayout(9)), tokenizer, newline)
    (rows,) = assembler.pieces(features(1), image(1))
    assert assembler.positions(image(1)) == len(rows) == SIDE**2 + 1
    np.testing.assert_array_equal(rows[-1], newline)
    np.testing.assert_array_equal(rows[:-1], features(1)[0])


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (2, 2), (1, 3), (4, 1)])
def test_framed_tiles_equal_idefics3_and_smolvlm(rows: int, columns: int, tokenizer: Tokenizer) -> None:
    from transformers.models.idefics3.processing_idefics3 import Idefics3Processor
    from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string

    single = (rows, columns) == (1, 1)
    prepared = image(1 if single else rows * columns + 1, rows, columns)
    shown = (0, 0) if single else (rows, columns)
    marker = "<image>"
    processor: Any = SimpleNamespace(
        fake_image_token="<fake>", global_image_tag="<global>", image_token=marker, image_seq_len=SIDE**2
    )
    text = Idefics3Processor.replace_image_token(processor, {"rows": [[shown[0]]], "cols": [[shown[1]]]}, 0)
    assert text == get_image_prompt_string(*shown, SIDE**2, "<fake>", marker, "<global>")
    expected = tokenizer.encode(text)

    assembler = ImageAssembler(model(FRAMED), tokenizer)
    values = features(len(prepared.tiles))
    pieces = assembler.pieces(values, prepared)
    image_id = tokenizer.special_tokens[marker]
    ids = [i for piece in pieces for i in (piece.tolist() if piece.ndim == 1 else [image_id] * len(piece))]
    assert ids == expected
    assert assembler.positions(prepared) == len(expected)
    np.testing.assert_array_equal(np.concatenate([p for p in pieces if p.ndim == 2]), values.reshape(-1, HIDDEN))


def test_tiles_without_a_layout_follow_each_other(tokenizer: Tokenizer) -> None:
    assembler = ImageAssembler(model(None), tokenizer)
    assert assembler.positions(image(3)) == 3 * SIDE**2
    np.testing.assert_array_equal(np.stack(assembler.pieces(features(3), image(3))), features(3))


def test_the_layout_survives_a_manifest() -> None:
    for layout in (RowsLayout(9), FRAMED, None):
        spec = replace(model(layout), preprocess=PreprocessSpec(32, tiles=AspectTiles(1, 12)))
        assert build(ModelSpec, spec.to_dict(), "spec") == spec


def newline_bundle(folder: Path, content: bytes) -> Bundle:
    path = folder / "image_newline.npy"
    path.write_bytes(content)
    entry = ArtifactEntry(path=path.name, role=NEWLINE_ROLE, format="npy", bytes=len(content), sha256=sha256_file(path))
    spec = model(RowsLayout(9))
    manifest = Manifest(schema_version=1, name="t", format="onnx", spec=spec.to_dict(), recipe={}, artifacts=[entry])
    return Bundle(folder, manifest, spec)


def npy(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def test_the_newline_is_read_back(tmp_path: Path) -> None:
    newline = np.arange(HIDDEN, dtype=np.float32)
    found = load_newline(newline_bundle(tmp_path, npy(newline)))
    assert found is not None
    np.testing.assert_array_equal(found, newline)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not an array",
        npy(np.zeros(HIDDEN + 1, np.float32)),
        npy(np.zeros(HIDDEN, np.float64)),
        npy(np.full(HIDDEN, np.nan, np.float32)),
        npy(np.array([Path()] * HIDDEN, object)),
        npy(np.zeros(HIDDEN, np.float32))[:-4],
    ],
)
def test_a_damaged_newline_is_refused(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="image newline"):
        load_newline(newline_bundle(tmp_path, content))


def test_a_missing_newline_is_an_error_of_the_bundle(tokenizer: Tokenizer) -> None:
    with pytest.raises(BundleError, match="no image newline"):
        ImageAssembler(model(RowsLayout(9)), tokenizer)
