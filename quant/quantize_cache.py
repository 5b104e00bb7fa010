"""The pass `kv_cache`: keys and values of an ONNX decoder are kept as int8, in a quarter of the memory.

In: a model and calibration samples. Out: the model with a scale for each channel of each head, which the exporter hands
to GroupQueryAttention. Keys lie in the cache turned by their positions, so that a pair of channels sweeps a circle:
both get the largest radius of the pair, and positions beyond those of the samples are within range, too.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from edgevlm.calibration.activations import embed
from edgevlm.calibration.layers import LayerStep, walk
from edgevlm.calibration.scratch import Scratch
from edgevlm.errors import CheckpointError
from edgevlm.models.rebuild import with_note
from edgevlm.models.vlm import VlmModel
from edgevlm.passes import Pass, PassContext, Stage
from edgevlm.progress import part_of
from edgevlm.quant.cache_scales import CacheScales
from edgevlm.recipe import Recipe
from edgevlm.spec import ModelSpec

#: Codes on each side of zero.
_LEVELS = 127


class QuantizeCacheConfig(BaseModel):
    """Nothing is to be chosen."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class QuantizeCache(Pass[QuantizeCacheConfig]):
    """An int8 key/value cache."""

    name, stage = "kv_cache", Stage.QUANTIZATION
    page = "docs/quantization.md"
    Config = QuantizeCacheConfig
    needs_calibration = True

    def fits(self, recipe: Recipe) -> str | None:
        """Why the pass cannot stand in this recipe, or None."""
        if recipe.format == "gguf":
            return "llama.cpp chooses the type of the cache when it runs: edgevlm run --kv-cache q8_0"
        if recipe.format == "tensorrt":
            return "the cache of TensorRT's graphs has the type that they compute in"
        return None

    def applies_to(self, spec: ModelSpec) -> str | None:
        """Why this model cannot take the pass, or None."""
        if spec.decoder.token_drop is not None:
            return (
                f"{spec.decoder.token_drop.name} compares image tokens by the keys in the cache, which it needs in full"
            )
        return None

    @torch.no_grad()
    def run(self, model: VlmModel, context: PassContext) -> VlmModel:
        """The model with scales.

        Raises:
            CheckpointError: calibration gives keys or values that are not finite.
        """
        assert context.calibration is not None
        scratch, layers = Scratch(context.calibration.memory), len(model.decoder.layers)
        activations = embed(model, context.calibration, scratch, part_of(context.progress, 0, 0.6))
        report = part_of(context.progress, 0.6, 1)
        scales = []
        for step in walk(model.decoder, activations):
            report(step.index, layers, "ranges of keys and values")
            scales.append(layer_scales(step, model.spec.decoder.rotary_dim))
        return with_note(dataclasses.replace(model, cache_scales=tuple(scales)), "kv_cache: keys and values are int8")


def layer_scales(step: LayerStep, rotary_dim: int) -> CacheScales:
    """From the keys and values of all samples; `rotary_dim` channels of a head are turned.

    Raises:
        CheckpointError: one is not finite.
    """
    keys = values = torch.zeros(())
    for sample, states in enumerate(step.activations.states):
        _, (key, value) = step.layer(states[None], step.activations.rotary(sample), None, None)
        keys = torch.maximum(keys, _radii(key[0], rotary_dim).amax(dim=1))
        values = torch.maximum(values, value[0].abs().amax(dim=1))
    for ranges in (keys, values):
        if not ranges.isfinite().all():
            raise CheckpointError(
                "calibration gives keys or values that are not finite", f"layers.{step.index}.self_attn"
            )
    # A channel that was always zero needs a scale that can be divided by.
    key_scale, value_scale = (np.maximum(r.numpy() / _LEVELS, np.finfo(np.float32).tiny) for r in (keys, values))
    return CacheScales(key_scale, value_scale)


def _radii(key: Tensor, rotary_dim: int) -> Tensor:
    """Of keys `[heads, S, D]`: each channel's size, of those that are turned the pair's."""
    half = rotary_dim // 2
    pair = torch.hypot(key[..., :half], key[..., half:rotary_dim])
    return torch.cat((pair, pair, key[..., rotary_dim:].abs()), dim=-1)
