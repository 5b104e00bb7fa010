"""Checkpoints become `VlmModel`s here: one file a family, one decoder for all.

`load(path)` finds the family by the `model_type` in `config.json`, or by a file that only its folders have, and fills a
`VlmModel`. Families differ in how they fill it, never in how it is consumed.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from edgevlm.models.checkpoint import read_json
from edgevlm.models.configs import require
from edgevlm.models.prompt_templates import with_template
from edgevlm.models.source import resolve
from edgevlm.models.text_side import find_text_side
from edgevlm.models.unknown import unknown_model
from edgevlm.models.vlm import VlmModel, check_resolution, with_resolution
from edgevlm.spec import FramedLayout, ModelSpec

#: A family is a module of this package with `MODEL_TYPES` and `load(folder, config)`. It may have a `MARKER`, a file by
#: which its folders are known, `recognises(config)` for a configuration without a model type, and `PROMPT_TEMPLATES` by
#: name. Where loading computes with weights it has also `describe(folder, resolution)`, which gives the spec alone, and
#: its `load` takes the resolution too.
FAMILIES = (
    "fastvlm",
    "tinygptv",
    "idefics3",
    "llava_mini",
    "qwen2_vl",
    "internvl",
    "llava",
    "llava_next",
    "llava_onevision",
    "phi_vlm",
    "mobilevlm",
    "nanovlm",
)

#: Fields of checkpoints whose weights are not plain numbers: transformers' and MLX's.
_QUANTIZED = ("quantization_config", "quantization")

__all__ = ["FAMILIES", "VlmModel", "describe", "load", "resolve"]


def load(
    folder: Path,
    *,
    resolution: int | None = None,
    prompt_template: str | None = None,
    accept: Callable[[ModelSpec], None] | None = None,
) -> VlmModel:
    """Load the checkpoint in `folder`.

    Args:
        folder: of the checkpoint.
        resolution: input resolution in pixels; None keeps the checkpoint's.
        prompt_template: one of the family's templates, by name; None keeps the checkpoint's.
        accept: called with the spec, before any weight where loading computes with weights; it refuses by raising.

    Raises:
        CheckpointError: the model type is unknown, or the files do not hold together.
        InputError: the resolution is not a multiple of the encoder's stride, or there is no such template.
    """
    family, config = _family(folder)
    computes = hasattr(family, "describe")
    if computes and accept is not None:
        accept(_with_options(family, family.describe(folder, resolution), resolution, prompt_template))
    model: VlmModel = family.load(folder, config, resolution) if computes else family.load(folder, config)
    side = find_text_side(folder, model.spec.vision)
    if side is not None:
        spec = dataclasses.replace(model.spec, text_tower=side.spec)
        model = dataclasses.replace(model, spec=spec, text_side=side)
    spec = _with_options(family, model.spec, resolution, prompt_template)
    if accept is not None:
        accept(spec)
    model = dataclasses.replace(model, spec=spec)
    return model if resolution is None else with_resolution(model, resolution)


def describe(
    folder: Path, *, resolution: int | None = None, prompt_template: str | None = None
) -> tuple[ModelSpec, Path | None]:
    """The spec of the checkpoint in `folder`, and its tokenizer where text stands between tiles of an image.

    Weights are not read, but where the data tell whether the head is the embedding.

    Raises:
        CheckpointError: as `load`.
        InputError: as `load`.
    """
    family, _ = _family(folder)
    if hasattr(family, "describe"):
        described = family.describe(folder, resolution)
        return _with_options(family, described, resolution, prompt_template), None
    model = load(folder, resolution=resolution, prompt_template=prompt_template)
    framed = isinstance(model.spec.prompt.image_layout, FramedLayout)
    return model.spec, model.tokenizer_files["tokenizer.json"] if framed else None


def _family(folder: Path) -> tuple[ModuleType, dict[str, Any]]:
    """The module that loads `folder`, and the folder's `config.json` if the family has one."""
    families = [importlib.import_module(f"edgevlm.models.{name}") for name in FAMILIES]
    for family in families:
        if hasattr(family, "MARKER") and (folder / family.MARKER).is_file():
            return family, {}
    config = read_json(folder / "config.json")
    for family in families:
        named = config.get("model_type") in family.MODEL_TYPES
        if named or (hasattr(family, "recognises") and family.recognises(config)):
            for field in _QUANTIZED:
                require(config, field, (), str(folder / "config.json"))
            return family, config
    known = [model_type for family in families for model_type in family.MODEL_TYPES]
    raise unknown_model(config, str(folder / "config.json"), known)


def _with_options(family: ModuleType, spec: ModelSpec, resolution: int | None, template: str | None) -> ModelSpec:
    """The spec with another template, for a resolution that the encoder can have."""
    if resolution is not None:
        check_resolution(spec, resolution)
    if template is None:
        return spec
    templates = getattr(family, "PROMPT_TEMPLATES", {})
    return dataclasses.replace(spec, prompt=with_template(spec.prompt, templates, template, "prompt_template"))
