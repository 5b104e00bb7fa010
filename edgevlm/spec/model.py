"""A whole model in numbers."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from edgevlm.spec.decoder import DecoderSpec
from edgevlm.spec.fusion import FusionSpec
from edgevlm.spec.prompt import PreprocessSpec, PromptSpec
from edgevlm.spec.reading import build
from edgevlm.spec.vision import VisionSpec


@dataclass(frozen=True)
class ModelSpec:
    """Everything below the loader knows about a model. `family` is for people; nothing branches on it.

    `model_type` and `model_class` are what a bundle's `config.json` calls the model: transformers.js chooses by them.
    """

    family: str
    name: str
    vision: VisionSpec
    decoder: DecoderSpec
    preprocess: PreprocessSpec
    prompt: PromptSpec
    fusion: FusionSpec | None = None
    model_type: str = ""
    model_class: str = ""
    licence: str = "unknown"
    notes: tuple[str, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready form; `from_dict` is its inverse."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ModelSpec:
        """Read back what `to_dict` wrote.

        Raises:
            InputError: a field is missing, unknown or of the wrong type.
        """
        result = build(cls, data, "spec")
        assert isinstance(result, ModelSpec)
        return result
