"""What a recipe asks of a TensorRT bundle: the version that graphs are written for, and the length of the cache."""

from __future__ import annotations

from edgevlm.errors import UnsupportedError
from edgevlm.exporters.tensorrt import TensorRtOptions, tensorrt_options
from edgevlm.recipe import Recipe
from edgevlm.spec import ModelSpec
from edgevlm.targets.catalog import load_target

#: The target of recipes that name none: the machine at hand.
HERE = "cpu"


def check_target(recipe: Recipe) -> None:
    """Raise where the recipe names a target that is none.

    Raises:
        InputError: there is no such target, or its file is wrong.
    """
    if recipe.target != HERE:
        load_target(recipe.target)


def tensorrt_misfit(recipe: Recipe) -> str | None:
    """Why the recipe cannot say what it says of TensorRT, or None."""
    if recipe.format == "tensorrt":
        timed = "vision_precision auto times the engines of this machine's CPU; choose fp16 or w8a8"
        return timed if recipe.vision_precision == "auto" else None
    named = next((name for name in ("tensorrt_version", "context_length") if getattr(recipe, name) is not None), None)
    return None if named is None else f"{named} belongs to format tensorrt, not {recipe.format}"


def options_for(recipe: Recipe, spec: ModelSpec) -> TensorRtOptions:
    """What graphs are written for: the recipe's version, or the oldest that the target runs, which newer ones read.

    Raises:
        UnsupportedError: the target has no TensorRT.
        InputError: the version is too old, or the context does not fit the model.
    """
    version = recipe.tensorrt_version
    if version is None and recipe.target != HERE:
        profile = load_target(recipe.target)
        if not profile.tensorrt and profile.tensorrt_rtx is None:
            raise UnsupportedError(f"{profile.title} has no TensorRT", "--target", "use --format onnx or gguf")
        if profile.tensorrt:
            version = ".".join(str(part) for part in profile.tensorrt[0][:2])
    return tensorrt_options(version, recipe.context_length, spec)
