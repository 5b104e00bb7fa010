"""Packed patches against the image processor of transformers."""

import numpy as np
import pytest
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from edgevlm.errors import InputError
from edgevlm.patches import graph_inputs, scaled_size
from edgevlm.preprocess import normalise, prepare
from edgevlm.spec import PatchesSpec, PreprocessSpec

PATCHES = PatchesSpec(patch_size=14, merge_size=2, frames=2, min_pixels=56 * 56, max_pixels=28 * 28 * 24)
SPEC = PreprocessSpec(
    image_size=112,
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
    patches=PATCHES,
)
THEIRS = Qwen2VLImageProcessorPil(size={"shortest_edge": PATCHES.min_pixels, "longest_edge": PATCHES.max_pixels})


@pytest.mark.parametrize(
    ("width", "height"),
    [(100, 60), (60, 100), (640, 480), (333, 500), (20, 30), (3, 200), (56, 56), (98, 70), (900, 9)],
)
def test_patches_equal_those_of_transformers(width: int, height: int) -> None:
    """Larger and smaller than the bounds, portrait and landscape, halves that round to even."""
    values = np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)
    image = Image.fromarray(values)
    expected = THEIRS(image, return_tensors="np")
    patches, grid = graph_inputs(normalise(prepare(image, SPEC).tiles, SPEC), PATCHES)
    np.testing.assert_array_equal(grid, expected["image_grid_thw"])
    np.testing.assert_allclose(patches, expected["pixel_values"], atol=1e-6)


def test_too_elongated_an_image_is_refused() -> None:
    assert scaled_size(1, 200, PATCHES)[0] >= 28
    with pytest.raises(InputError, match="elongated"):
        scaled_size(1, 201, PATCHES)
