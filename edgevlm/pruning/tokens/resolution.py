"""Smaller images: the first thing to try with an encoder that was trained to be convolutional."""

from __future__ import annotations

import dataclasses
import math

from torch import Tensor

from edgevlm.errors import InputError
from edgevlm.models.taps import Taps
from edgevlm.models.vlm import VlmModel, check_resolution, with_resolution
from edgevlm.pruning.tokens.reducer import Options, Reducer
from edgevlm.spec import ModelSpec


class Resolution(Reducer[Options]):
    """The input resolution at which an image becomes K tokens; the same as the recipe's `resolution`."""

    name = "resolution"
    summary = "a smaller input, which becomes K tokens; the encoder gets faster too"
    source = "FastVLM (arXiv 2412.13303), section 3"

    @classmethod
    def refuses(cls, spec: ModelSpec, keep: int, options: Options) -> str | None:  # noqa: ARG003
        """An encoder that has one resolution, or none at which there are K tokens."""
        try:
            check_resolution(spec, _resolution(spec, keep))
        except InputError as error:
            return error.what
        if math.isqrt(keep) ** 2 != keep or spec.vision.tokens_at(_resolution(spec, keep)) != keep:
            return f"at no resolution it makes {keep} tokens of an image"
        return None

    @classmethod
    def planned(cls, spec: ModelSpec, keep: int, options: Options) -> ModelSpec:  # noqa: ARG003
        """The spec at that resolution."""
        size = _resolution(spec, keep)
        vision = dataclasses.replace(spec.vision, image_size=size, image_tokens=keep)
        return dataclasses.replace(
            spec, vision=vision, preprocess=dataclasses.replace(spec.preprocess, image_size=size)
        )

    @classmethod
    def reduced(cls, model: VlmModel, keep: int, options: Options) -> VlmModel:  # noqa: ARG003
        """The model at that resolution."""
        return with_resolution(model, _resolution(model.spec, keep))

    def forward(self, x: Tensor, taps: Taps) -> Tensor:  # noqa: ARG002
        """Nothing is left to do."""
        return x


def _resolution(spec: ModelSpec, keep: int) -> int:
    return math.isqrt(keep) * spec.vision.stride
