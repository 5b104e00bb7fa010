"""Small models for the tests of static int8: each kind of encoder, and plans of them."""

from dataclasses import replace

import torch
from pruned_models import scenes, silent
from reducer_models import CLIP, FASTVITHD, SIGLIP, vision_model, vision_spec
from tiny import tiny_model
from torch import nn

from edgevlm.models.vlm import VlmModel
from edgevlm.quant.vision import StaticPlan, plan_vision
from edgevlm.spec import EncoderSpec, PreprocessSpec

INTERN = replace(CLIP, layer_scale=True, activation="gelu", pre_norm=False)
ENCODERS: dict[str, EncoderSpec] = {"clip": CLIP, "siglip": SIGLIP, "internvit": INTERN, "fastvithd": FASTVITHD}


def vlm(name: str) -> VlmModel:
    """A model whose layer scales differ channel by channel, and whose norms make one channel loud.

    A loud channel is what published vision towers have, and what smoothing is for.
    """
    tiny, encoder = tiny_model(), ENCODERS[name]
    spec = vision_spec(encoder, 2 if name == "fastvithd" else 6)
    vision = vision_model(spec)
    generator = torch.Generator().manual_seed(1)
    for parameter_name, parameter in vision.named_parameters():
        if "scale" in parameter_name:
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    for module_name, module in vision.named_modules():
        if isinstance(module, nn.LayerNorm) and ".layers." in module_name:
            module.weight[3] *= 6
    preprocess = PreprocessSpec(spec.image_size, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    return replace(tiny, vision=vision, spec=replace(tiny.spec, vision=spec, preprocess=preprocess))


def planned(model: VlmModel, count: int = 24) -> StaticPlan:
    """The plan of a model, from questions about `scenes`, several an image."""
    return plan_vision(model, scenes(count), silent)
