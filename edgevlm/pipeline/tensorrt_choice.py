"""What a recipe asks of a TensorRT bundle: its version, the length of the cache, and what is computed in."""

from __future__ import annotations

from edgevlm.errors import UnsupportedError
from edgevlm.exporters.tensorrt import TensorRtOptions, tensorrt_options
from edgevlm.recipe import Recipe
from edgevlm.spec import ModelSpec
from edgevlm.targets.catalog import load_target

#: The target of recipes that name none: the machine at hand.
HERE = "cpu"
#: The first compute capability with it (CUDA C++ Programming Guide, arithmetic instructions).
_BFLOAT16 = (8, 0)


#: What a bundle in bfloat16 says of its own verification.
UNPROVED = "verified with bfloat16 weights and float32 activations: how TensorRT rounds activations is not proved"


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
        if recipe.vision_precision == "auto":
            return "vision_precision auto times the engines of this machine's CPU; choose fp16 or w8a8"
        # Without a vision precision the tower has that of the decoder.
        floats = recipe.precision == "fp32" and recipe.vision_precision in (None, "fp32")
        if floats and recipe.tensorrt_dtype is not None:
            return f"tensorrt_dtype {recipe.tensorrt_dtype} says nothing where all is fp32"
        return None
    fields = ("tensorrt_version", "tensorrt_dtype", "context_length")
    named = next((name for name in fields if getattr(recipe, name) is not None), None)
    return None if named is None else f"{named} belongs to format tensorrt, not {recipe.format}"


def options_for(recipe: Recipe, spec: ModelSpec) -> TensorRtOptions:
    """What graphs are written for: the recipe's version, or the oldest that the target runs, which newer ones read.

    Raises:
        UnsupportedError: the target has no TensorRT, or computes no bfloat16.
        InputError: the version is too old, or the context does not fit the model.
    """
    version = recipe.tensorrt_version
    profile = None if recipe.target == HERE else load_target(recipe.target)
    capability = None if profile is None else profile.compute_capability
    if recipe.tensorrt_dtype == "bf16" and profile is not None and capability is not None and capability < _BFLOAT16:
        what = f"{profile.title} computes no bfloat16: that takes compute capability 8.0"
        raise UnsupportedError(what, "--tensorrt-dtype", "use --tensorrt-dtype fp16")
    if version is None and profile is not None:
        if not profile.tensorrt and profile.tensorrt_rtx is None:
            raise UnsupportedError(f"{profile.title} has no TensorRT", "--target", "use --format onnx or gguf")
        if profile.tensorrt:
            version = ".".join(str(part) for part in profile.tensorrt[0][:2])
    return tensorrt_options(version, recipe.context_length, spec, recipe.tensorrt_dtype)
