"""Small vision sides with each kind of encoder, and hand-made attention for reducers."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from edgevlm.models.projector import build_projector
from edgevlm.models.taps import QueryKey, Taps
from edgevlm.models.vlm import VisionModel, build_encoder
from edgevlm.pruning.tokens import REDUCERS
from edgevlm.pruning.tokens.reducer import Reducer
from edgevlm.spec import EncoderSpec, FastViTHDSpec, MlpProjectorSpec, VisionSpec, VitSpec
from edgevlm.zoo.scenes import scenes

CLIP = VitSpec(32, 64, 3, 4, 8, 6, 1e-5, class_token=True, patch_bias=False, pre_norm=True, activation="quick_gelu")
SIGLIP = VitSpec(32, 64, 3, 4, 8, 6, 1e-6, post_norm=True)
FASTVITHD = FastViTHDSpec(depths=(1, 1, 1, 1, 2), dims=(4, 8, 16, 32, 64), head_dim=32, squeeze_channels=8)


def vision_spec(encoder: EncoderSpec, side: int = 6, shuffle: int = 1) -> VisionSpec:
    """An image of `side` by `side` patches."""
    tokens = (side // shuffle) ** 2
    return VisionSpec(encoder, MlpProjectorSpec(24), side * encoder.stride, tokens, pixel_shuffle=shuffle)


def vision_model(spec: VisionSpec, seed: int = 0, hidden: int = 16) -> VisionModel:
    """Random weights, with attention sharp enough to tell tokens apart; embeddings of `hidden` channels.

    Convolutions keep the variance of what they see: with torch's own start nothing of an image is left behind
    FastViTHD.
    """
    torch.manual_seed(seed)
    model = VisionModel(build_encoder(spec.encoder), build_projector(spec, hidden), spec.pixel_shuffle)
    for name, weight in model.named_parameters():
        if weight.ndim == 2 and "positions" not in name:
            torch.nn.init.normal_(weight, std=1.5 * weight.shape[1] ** -0.5)
        if weight.ndim == 4:
            torch.nn.init.normal_(weight, std=1.25 * weight[0].numel() ** -0.5)
        if name.endswith(("positions", "class_token")):
            torch.nn.init.normal_(weight, std=0.3)
    return model.eval().requires_grad_(False)


@cache
def _scenes(count: int) -> list[Image.Image]:
    """Pictures of so many scenes."""
    found = {item.image_id: item.image for item in scenes("calibration", 6 * count)}
    assert len(found) >= count
    return [Image.fromarray(image) for image in found.values()][:count]


def scene_pixels(size: int, count: int = 64) -> Tensor:
    """Scenes `[count, 3, size, size]`, normalised."""
    small = [np.asarray(picture.resize((size, size))) for picture in _scenes(count)]
    return torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2).float() / 127.5 - 1


def reducer(name: str, spec: VisionSpec, keep: int, **options: Any) -> Reducer[Any]:
    """A reducer by name."""
    cls = REDUCERS[name]
    assert issubclass(cls, Reducer)
    return cls(spec, keep, cls.Options.model_validate(options)).eval()


def taps(layers: Sequence[int], tokens: int, *, heads: int = 4, size: int = 8, seed: int = 0) -> Taps:
    """Random queries and keys `[2, heads, tokens, size]` of each layer, and a class feature of 12 channels."""
    generator = torch.Generator().manual_seed(seed)
    made = Taps(layers)
    for layer in layers:
        shape = (2, heads, tokens, size)
        made.found[layer] = QueryKey(torch.randn(shape, generator=generator), torch.randn(shape, generator=generator))
    made.class_feature = torch.randn((2, 1, 12), generator=generator)
    return made


def attention(layer: QueryKey) -> NDArray[np.float64]:
    """Attention `[B, heads, T, T]` by its definition."""
    query, key = layer.query.double().numpy(), layer.key.double().numpy()
    scores = np.exp(np.einsum("bhid,bhjd->bhij", query, key) / np.sqrt(query.shape[-1]))
    return scores / scores.sum(-1, keepdims=True)


def highest(scores: NDArray[np.float64], keep: int) -> list[int]:
    """Indexes of the highest scores, in their order; of equal scores the first."""
    return sorted(sorted(range(len(scores)), key=lambda index: (-scores[index], index))[:keep])


def rows(x: Tensor) -> NDArray[np.float64]:
    """A tensor for numpy."""
    return x.double().numpy()
