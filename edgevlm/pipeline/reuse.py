"""Take the decoder's files from another bundle instead of writing the same bytes again.

In: a recipe, the model it made, and a bundle that this version made of the same checkpoint. Out: links to the decoder
and its embedding in the folder of the new bundle, where both must come out equal; nothing where they may differ. A
study of image tokens writes a large decoder once this way.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

from edgevlm.bundle import Bundle
from edgevlm.exporters.base import Artifact, Role
from edgevlm.passes import Stage
from edgevlm.pipeline.gguf_choice import is_weighed
from edgevlm.pipeline.passes import parse_passes
from edgevlm.recipe import Recipe
from edgevlm.spec import ModelSpec

#: Fields of a recipe that do not change a decoder, as long as passes are of stage `TOKENS`.
_FREE = frozenset({"passes", "calibration", "resolution", "verify"})
_TAKEN = ("decoder", "embed")


def take_over(
    recipe: Recipe, spec: ModelSpec, like: Bundle, sources: Mapping[str, str], tools: Mapping[str, str], out: Path
) -> list[Artifact]:
    """Link the decoder's files of `like` into `out`, which is being written, or do nothing.

    Args:
        recipe: of the new bundle.
        spec: of its model, after all passes.
        like: the other bundle; its files are linked, or copied where the file system cannot.
        sources: SHA-256 of the checkpoint's files, as the new manifest will have them.
        tools: versions, likewise.
        out: folder of the new bundle.

    Raises:
        OSError: a file cannot be written.
    """
    manifest = like.manifest
    if manifest.source_sha256 != sources or manifest.tools != tools:
        return []
    other = Recipe.model_validate(manifest.recipe)
    if recipe.model_dump(exclude=set(_FREE)) != other.model_dump(exclude=set(_FREE)):
        return []
    if is_weighed(recipe) or is_weighed(other):
        return []
    # A build plan is made of all graphs as they are written.
    if recipe.format == "tensorrt":
        return []
    if any(each.stage != Stage.TOKENS for both in (recipe, other) for each in parse_passes(both)):
        return []
    if _without_vision(spec, like.spec) != like.spec:
        return []
    artifacts = []
    for entry in manifest.artifacts:
        if entry.role in _TAKEN:
            _link(like.path / entry.path, out / entry.path)
            (role,) = (role for role in get_args(Role) if role == entry.role)
            artifacts.append(
                Artifact(entry.path, role, entry.format, entry.precision, entry.bits_per_weight, entry.parameters)
            )
    return artifacts


def _without_vision(spec: ModelSpec, like: ModelSpec) -> ModelSpec:
    """The spec with what belongs to images, and to people, from another one."""
    return dataclasses.replace(spec, vision=like.vision, preprocess=like.preprocess, notes=like.notes)


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
