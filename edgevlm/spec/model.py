"""A whole model in numbers."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from edgevlm.spec.decoder import DecoderSpec
from edgevlm.spec.fusion import FusionSpec
from edgevlm.spec.prompt import PreprocessSpec, PromptSpec
from edgevlm.spec.reading import build
from edgevlm.spec.text import TextTowerSpec
from edgevlm.spec.vision import VisionSpec

#: Left out where they are None, so that versions without these fields read the bundles of models without them.
_OPTIONAL = frozenset({"reducer", "token_drop", "text"})
#: Of the checkpoint, not of what is made of it.
_UNWRITTEN = frozenset({"text_tower"})


@dataclass(frozen=True)
class ModelSpec:
    """Everything below the loader knows about a model. `family` is for people; nothing branches on it.

    `model_type` and `model_class` are what a bundle's `config.json` calls the model: transformers.js chooses by them.
    `text_tower` is that of the encoder's CLIP where the checkpoint holds it; methods of pruning tokens may read it.
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
    text_tower: TextTowerSpec | None = field(default=None, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready form; `from_dict` is its inverse."""
        return dataclasses.asdict(self, dict_factory=_written)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ModelSpec:
        """Read back what `to_dict` wrote.

        Raises:
            InputError: a field is missing, unknown or of the wrong type.
        """
        result = build(cls, data, "spec")
        assert isinstance(result, ModelSpec)
        return result


def _written(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    """The fields of one dataclass, as they are written."""
    return {
        name: value for name, value in fields if name not in _UNWRITTEN and (value is not None or name not in _OPTIONAL)
    }
