"""The streaming reference against the same modules run whole."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import tiny_model

from edgevlm import reference
from edgevlm.context import image_parts, segments, splice
from edgevlm.models.vit import Vit
from edgevlm.models.vlm import VlmModel
from edgevlm.prompt import IMAGE_PLACEHOLDER
from edgevlm.spec import VitSpec


@pytest.fixture(scope="module")
def model() -> VlmModel:
    return tiny_model()


@torch.no_grad()
def test_last_logits_equal_one_forward_pass(model: VlmModel) -> None:
    generator = np.random.default_rng(0)
    hidden = model.spec.decoder.hidden_size
    sequences = [generator.standard_normal((length, hidden), dtype=np.float32) for length in (5, 9)]
    found = reference.last_logits(model, [[sequence[:2], sequence[2:]] for sequence in sequences], [2, 3])
    for sequence, count, logits in zip(sequences, (2, 3), found, strict=True):
        whole, _ = model.decoder(torch.from_numpy(sequence)[None], torch.arange(len(sequence))[None])
        np.testing.assert_allclose(logits, whole[0, -count:].numpy(), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_weights_in_bfloat16_are_computed_in_float32(model: VlmModel) -> None:
    half = replace(model, vision=reference._float(model.vision).bfloat16())
    pixels = np.random.default_rng(1).random((2, 3, *2 * [model.spec.vision.image_size]), dtype=np.float32)
    expected = half.vision.float()(torch.from_numpy(pixels)).numpy()
    (found,) = reference.image_features(half, [pixels])
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_tower_is_widened_one_layer_at_a_time() -> None:
    spec = VitSpec(16, 24, 3, 2, patch_size=4, grid=2, norm_eps=1e-6)
    torch.manual_seed(0)
    tower = Vit(spec).bfloat16().requires_grad_(False)
    wide = reference._float_by_layers(tower)
    assert {name.split(".")[0] for name, _ in wide.named_parameters()} == {"patch", "positions"}
    pixels = torch.rand(1, 3, 8, 8)
    found = wide(pixels)
    assert {parameter.dtype for parameter in tower.parameters()} == {torch.bfloat16}
    torch.testing.assert_close(found, tower.float()(pixels), atol=0, rtol=0)


def test_the_image_stands_where_its_placeholder_is() -> None:
    image = np.ones((3, 2), np.float32)
    one = image_parts([image], b"key")
    tiled = image_parts([np.array([1, 2], np.int32), image], b"key")
    parts = segments(splice([7, 8, IMAGE_PLACEHOLDER, 9, IMAGE_PLACEHOLDER], [one, tiled]))
    assert [part.tolist() for part in parts] == [[7, 8], image.tolist(), [9, 1, 2], image.tolist()]
    assert [part.tolist() for part in segments(splice([IMAGE_PLACEHOLDER], [one]))] == [image.tolist()]
