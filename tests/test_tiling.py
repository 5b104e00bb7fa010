"""Tiles equal those of transformers' Pillow image processors, byte for byte."""

import sys
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from edgevlm.errors import BundleError
from edgevlm.imageio import load_image
from edgevlm.preprocess import normalise, prepare
from edgevlm.spec import AnyresTiles, AspectTiles, PreprocessSpec, SplitTiles
from edgevlm.spec.reading import build

# Newer than this torch, torchvision's operator registration fails on import; the Pillow classes do not need it.
sys.modules.setdefault("torchvision._meta_registrations", types.ModuleType("_meta_registrations"))

HALF, CLIP = (0.5, 0.5, 0.5), (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
PINPOINTS = tuple((h, w) for h in (32, 64, 96) for w in (32, 64, 96, 128))
#: Landscape, portrait, square, tiny, very wide, very tall, and sizes that fall on and beside a tile's edge.
SIZES = [(160, 90), (90, 160), (64, 64), (3, 2), (1, 1), (900, 7), (7, 900), (1, 300), (33, 32), (97, 96), (200, 133)]


def pictures() -> Iterator[NDArray[np.uint8]]:
    """Noise of every size."""
    rng = np.random.default_rng(0)
    for width, height in SIZES:
        yield rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def ours(pixels: NDArray[np.uint8], spec: PreprocessSpec, images: int = 1) -> tuple[NDArray[np.float32], int, int]:
    prepared = prepare(load_image(pixels), spec, images)
    return normalise(prepared.tiles, spec), prepared.rows, prepared.columns


@pytest.mark.parametrize(("longest", "split"), [(128, True), (100, True), (32, True), (96, False), (131, True)])
def test_split_tiles_equal_idefics3(longest: int, split: bool) -> None:
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    processor = Idefics3ImageProcessorPil(
        size={"longest_edge": longest},
        max_image_size={"longest_edge": 32},
        do_image_splitting=split,
        image_mean=list(HALF),
        image_std=list(HALF),
    )
    spec = PreprocessSpec(32, "stretch", resample="lanczos", mean=HALF, std=HALF, tiles=SplitTiles(longest, split))
    for pixels in pictures():
        expected: Any = processor(Image.fromarray(pixels), return_tensors="np", return_row_col_info=True)
        tiles, rows, columns = ours(pixels, spec)
        np.testing.assert_array_equal(tiles, expected["pixel_values"][0], err_msg=f"{pixels.shape}")
        assert expected["pixel_attention_mask"].all()
        whole_only = len(tiles) == 1
        assert (expected["rows"][0][0], expected["cols"][0][0]) == ((0, 0) if whole_only else (rows, columns))


@pytest.mark.parametrize(("least", "most"), [(1, 12), (1, 1), (2, 6), (1, 5)])
def test_aspect_tiles_equal_internvl(least: int, most: int) -> None:
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    processor = GotOcr2ImageProcessorPil(
        size={"height": 32, "width": 32},
        crop_to_patches=True,
        min_patches=least,
        max_patches=most,
        image_mean=list(CLIP),
        image_std=list(CLIP_STD),
    )
    spec = PreprocessSpec(32, "stretch", mean=CLIP, std=CLIP_STD, tiles=AspectTiles(least, most))
    for pixels in pictures():
        expected = processor(Image.fromarray(pixels), return_tensors="np")["pixel_values"]
        tiles, rows, columns = ours(pixels, spec)
        np.testing.assert_array_equal(tiles, expected, err_msg=f"{pixels.shape}")
        assert len(tiles) == rows * columns + (rows * columns > 1)


def test_anyres_tiles_equal_llava_onevision() -> None:
    from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil

    processor: Any = LlavaOnevisionImageProcessorPil(
        size={"height": 32, "width": 32},
        image_grid_pinpoints=[list(pinpoint) for pinpoint in PINPOINTS],
        image_mean=list(HALF),
        image_std=list(HALF),
    )
    spec = PreprocessSpec(32, "pad", (127, 127, 127), "bicubic", HALF, HALF, AnyresTiles(PINPOINTS))
    for pixels in pictures():
        image = Image.fromarray(pixels)
        expected = processor(image, return_tensors="np")["pixel_values"][0]
        tiles, rows, columns = ours(pixels, spec)
        np.testing.assert_array_equal(tiles, expected, err_msg=f"{pixels.shape}")
        assert len(tiles) == 1 + rows * columns
        several = processor([[image, image]], return_tensors="np")["pixel_values"][0]
        np.testing.assert_array_equal(ours(pixels, spec, images=2)[0], several, err_msg=f"{pixels.shape}, several")


def test_the_way_of_cutting_survives_a_manifest() -> None:
    import dataclasses
    import json

    for tiles in (AnyresTiles(PINPOINTS, cut_several=True), SplitTiles(128, split=False), AspectTiles(1, 12), None):
        spec = PreprocessSpec(32, tiles=tiles)
        assert build(PreprocessSpec, json.loads(json.dumps(dataclasses.asdict(spec))), "preprocess") == spec


@pytest.mark.parametrize(
    ("tiles", "message"),
    [
        (AnyresTiles(()), "0 canvases"),
        (AnyresTiles(((32, 40),)), "32 x 40 pixels is not made of tiles of 32"),
        (AnyresTiles(((1 << 20, 1 << 20),)), "more than 64 tiles"),
        (SplitTiles(1 << 20), "longest edge of 1048576"),
        (AspectTiles(1, 1 << 20), "1 to 1048576 tiles"),
        (AspectTiles(0, 4), "0 to 4 tiles"),
    ],
)
def test_a_bundle_cannot_ask_for_any_number_of_tiles(tiles: Any, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        prepare(Image.new("RGB", (9, 9)), PreprocessSpec(32, "stretch", tiles=tiles))
