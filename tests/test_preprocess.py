"""Preprocessing equals the published processors bit for bit."""

import sys
import types
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgevlm.errors import InputError
from edgevlm.preprocess import fit_square, preprocess
from edgevlm.spec import PreprocessSpec

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SPECS = {
    "fastvlm": PreprocessSpec(64),
    "llava": PreprocessSpec(56, "pad", tuple(int(255 * m) for m in CLIP_MEAN), "bicubic", CLIP_MEAN, CLIP_STD),  # type: ignore[arg-type]
    "clip": PreprocessSpec(48, "crop", (0, 0, 0), "bicubic", CLIP_MEAN, CLIP_STD),
    "bilinear crop": PreprocessSpec(32, "crop", (0, 0, 0), "bilinear"),
    "bilinear pad": PreprocessSpec(32, "pad", (255, 128, 0), "bilinear", mean=(1.0, 0.505, 0.0)),
}
SIZES = [(64, 64), (200, 100), (100, 200), (37, 91), (301, 33), (33, 301), (1, 50), (20, 20), (63, 64)]


def oracle(spec: PreprocessSpec) -> Any:
    # Newer than this torch, torchvision's operator registration fails on import; the Pillow classes do not need it.
    sys.modules.setdefault("torchvision._meta_registrations", types.ModuleType("_meta_registrations"))
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    return LlavaImageProcessorPil(
        do_pad=spec.fit == "pad",
        size={"shortest_edge": spec.image_size},
        crop_size={"height": spec.image_size, "width": spec.image_size},
        resample=3 if spec.resample == "bicubic" else 2,
        image_mean=list(spec.mean),
        image_std=list(spec.std),
    )


@pytest.mark.parametrize("name", SPECS)
def test_pixels_equal_transformers(name: str) -> None:
    spec, rng = SPECS[name], np.random.default_rng(0)
    processor = oracle(spec)
    for width, height in SIZES:
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        expected = processor(Image.fromarray(pixels), return_tensors="np")["pixel_values"]
        actual = preprocess(pixels, spec)
        assert actual.dtype == np.float32
        assert actual.shape == (1, 3, spec.image_size, spec.image_size)
        np.testing.assert_array_equal(actual, expected, err_msg=f"{width} x {height}")


def test_bands_leave_no_seam() -> None:
    """Taller than a band: the rows are resized in pieces, and must equal a square resized whole."""
    pixels = np.random.default_rng(1).integers(0, 256, (1000, 300, 3), dtype=np.uint8)
    square = Image.new("RGB", (1000, 1000))
    square.paste(Image.fromarray(pixels), (350, 0))
    expected = np.asarray(square.resize((96, 96), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(fit_square(Image.fromarray(pixels), PreprocessSpec(96)), expected)


def test_a_strip_that_would_blow_up_when_cropped_is_refused() -> None:
    with pytest.raises(InputError, match="elongated"):
        preprocess(np.zeros((1, 16_000, 3), np.uint8), PreprocessSpec(64, "crop"))


def test_a_strip_is_padded_without_holding_its_square() -> None:
    assert preprocess(np.zeros((1, 4_000, 3), np.uint8), PreprocessSpec(64)).shape == (1, 3, 64, 64)
    assert preprocess(np.zeros((4_000, 1, 3), np.uint8), PreprocessSpec(64)).shape == (1, 3, 64, 64)
