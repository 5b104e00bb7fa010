"""The pass `ffn_width`: channels inside the decoder's MLPs that carry least are dropped, as many in every layer.

In: a model and calibration samples. Out: a model with a smaller `intermediate_size`, which is smaller and faster in
every format. A channel counts by the size of its activation times the norm of the weights that read it (Wanda's score,
arXiv 2306.11695, summed over the outputs); the weights that read the kept channels are the least-squares solution for
the old outputs. Widths stay multiples of 64, which kernels and groups of quantized weights need.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from edgevlm.calibration.activations import embed
from edgevlm.calibration.layers import LayerStep, walk
from edgevlm.calibration.scratch import Scratch
from edgevlm.calibration.statistics import SecondMoments
from edgevlm.errors import InputError
from edgevlm.models.decoder import DecoderLayer, SwiGLU
from edgevlm.models.rebuild import with_decoder, with_note
from edgevlm.models.vlm import VlmModel
from edgevlm.passes import Pass, PassContext, Stage
from edgevlm.progress import part_of
from edgevlm.recipe import Recipe
from edgevlm.spec import DecoderSpec, ModelSpec

#: Of the mean of the second moments' diagonal, added to it.
_DAMPING = 0.01
#: Weights of a row that a K-quant of GGUF packs together (ggml's QK_K).
_K_QUANT = 256


class FfnWidthConfig(BaseModel):
    """How wide the MLPs stay.

    Attributes:
        width: channels, or
        keep: the share of them, taken to the nearest multiple.
        multiple: of which the width is one; K-quants of GGUF need 256.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    width: int | None = Field(default=None, ge=1)
    keep: float | None = Field(default=None, gt=0, lt=1)
    multiple: Literal[64, 128, 256] = 64

    @model_validator(mode="after")
    def _one(self) -> FfnWidthConfig:
        if (self.width is None) == (self.keep is None):
            raise ValueError("give width or keep")
        return self


class FfnWidth(Pass[FfnWidthConfig]):
    """Narrower MLPs."""

    name, stage = "ffn_width", Stage.STRUCTURE
    page = "docs/weight-pruning.md"
    Config = FfnWidthConfig
    needs_calibration = True

    def __init__(self, config: FfnWidthConfig, seed: int) -> None:
        super().__init__(config, seed)
        if config.width is not None and config.width % config.multiple:
            below = config.width // config.multiple * config.multiple
            near = f"{below} or {below + config.multiple}" if below else str(config.multiple)
            raise InputError(
                f"width {config.width} is not a multiple of {config.multiple}", "ffn_width field 'width'", f"use {near}"
            )

    def fits(self, recipe: Recipe) -> str | None:
        """Why the pass cannot stand in this recipe, or None: K-quants pack 256 weights of a row together."""
        unit = self.config.multiple if self.config.width is None else self.config.width
        if recipe.gguf_type is None or "_k" not in recipe.gguf_type or unit % _K_QUANT == 0:
            return None
        return f"{recipe.gguf_type} needs a width that is a multiple of {_K_QUANT}; give one, or multiple: {_K_QUANT}"

    def width(self, decoder: DecoderSpec) -> int:
        """Channels that stay."""
        if self.config.width is not None:
            return self.config.width
        assert self.config.keep is not None
        return max(1, round(self.config.keep * decoder.intermediate_size / self.config.multiple)) * self.config.multiple

    def applies_to(self, spec: ModelSpec) -> str | None:
        """Why this model cannot take the pass, or None."""
        have, wanted = spec.decoder.intermediate_size, self.width(spec.decoder)
        return None if wanted < have else f"its MLPs have {have} channels, so {wanted} are not fewer"

    def planned(self, spec: ModelSpec) -> ModelSpec:
        """The spec with narrower MLPs."""
        width = self.width(spec.decoder)
        return dataclasses.replace(spec, decoder=dataclasses.replace(spec.decoder, intermediate_size=width))

    @torch.no_grad()
    def run(self, model: VlmModel, context: PassContext) -> VlmModel:
        """The model with narrower MLPs."""
        assert context.calibration is not None
        scratch = Scratch(context.calibration.memory)
        activations = embed(model, context.calibration, scratch, part_of(context.progress, 0, 0.4))
        decoder, changed = model.decoder, dict[str, Tensor]()
        before, width = model.spec.decoder.intermediate_size, self.width(model.spec.decoder)
        for step in walk(decoder, activations):
            count = len(decoder.layers)
            context.progress(0.4 + 0.6 * step.index / count, 1, f"layer {step.index + 1} of {count}")
            prefix = f"layers.{step.index}."
            for name, value in _narrow(step, width).items():
                stored = decoder.get_parameter(prefix + name)
                changed[prefix + name] = scratch.keep(value, stored.dtype)
                # What comes behind sees the weights as they are stored.
                step.layer.get_parameter(name).data = changed[prefix + name].float()
        narrower = with_decoder(model, self.planned(model.spec).decoder, changed)
        return with_note(narrower, f"ffn_width: {width} of {before} channels of each MLP are kept")


def _narrow(step: LayerStep, width: int) -> dict[str, Tensor]:
    """The layer's tensors that get another shape, by name, float32."""
    layer = step.layer
    into, out = _names(layer)
    moments = step.collect(SecondMoments)[out].mean
    weight = step.linear(out).weight
    score = moments.diagonal().sqrt() * weight.norm(dim=0)
    kept = score.argsort(descending=True, stable=True)[:width].sort().values
    narrow = {f"{out}.weight": refit(weight, moments, kept)}
    for name in into:
        module = step.linear(name)
        narrow[f"{name}.weight"] = module.weight[kept]
        if module.bias is not None:
            narrow[f"{name}.bias"] = module.bias[kept]
    return narrow


def _names(layer: DecoderLayer) -> tuple[tuple[str, ...], str]:
    if isinstance(layer.mlp, SwiGLU):
        return ("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj"
    return ("mlp.fc1",), "mlp.fc2"


def refit(weight: Tensor, moments: Tensor, kept: Tensor) -> Tensor:
    """The weight `[N, K]` on the kept channels whose outputs are nearest to those of `weight` `[N, C]` on all.

    Args:
        weight: float32.
        moments: float32 `[C, C]`, of the inputs.
        kept: indices `[K]`.
    """
    inner = moments[kept][:, kept]
    inner.diagonal().add_(_DAMPING * inner.diagonal().mean().clamp(min=1e-30))
    # The damping pulls towards the weights as they are, not towards zero.
    missing = weight @ moments[:, kept] - weight[:, kept] @ moments[kept][:, kept]
    change: Tensor = torch.linalg.solve(inner, missing.T).T
    return weight[:, kept] + change
