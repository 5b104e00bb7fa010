"""Checkpoints become `VlmModel`s here: one file a family, one decoder for all.

`load(path)` finds the family by the `model_type` in `config.json` and fills a `VlmModel`. Families differ in how they
fill it, never in how it is consumed.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from edgevlm.models.checkpoint import read_json
from edgevlm.models.source import resolve
from edgevlm.models.unknown import unknown_model
from edgevlm.models.vlm import VlmModel, with_resolution

#: A family is a module of this package with `MODEL_TYPES` and `load(folder, config)`.
FAMILIES = ("fastvlm",)

__all__ = ["FAMILIES", "VlmModel", "load", "resolve"]


def load(folder: Path, *, resolution: int | None = None) -> VlmModel:
    """Load the checkpoint in `folder`, optionally for another input resolution in pixels.

    Raises:
        CheckpointError: the model type is unknown, or the files do not hold together.
        InputError: the resolution is not a multiple of the encoder's stride.
    """
    config = read_json(folder / "config.json")
    model_type = config.get("model_type")
    known: list[str] = []
    for name in FAMILIES:
        family = importlib.import_module(f"edgevlm.models.{name}")
        known += family.MODEL_TYPES
        if model_type in family.MODEL_TYPES:
            model: VlmModel = family.load(folder, config)
            return model if resolution is None else with_resolution(model, resolution)
    raise unknown_model(config, str(folder / "config.json"), known)
