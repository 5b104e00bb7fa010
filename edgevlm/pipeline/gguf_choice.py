"""What a recipe asks of its GGUF: the type, how closely it is verified, and whether images weigh its errors."""

from __future__ import annotations

from pathlib import Path

from edgevlm.calibration import Calibration
from edgevlm.exporters.base import Progress
from edgevlm.exporters.gguf.exporter import WEIGHED
from edgevlm.exporters.gguf.imatrix import make, write_imatrix
from edgevlm.models import VlmModel
from edgevlm.recipe import GgufType, Precision, Recipe

#: The GGUF type that a precision stands for.
_TYPES: dict[Precision, GgufType] = {"fp32": "f32", "fp16": "f16", "int8": "q8_0", "int4": "q4_0"}
#: The row of the verification table that a GGUF type is held to.
GGUF_PRECISIONS: dict[GgufType, Precision] = {
    "f32": "fp32",
    "f16": "fp16",
    "q8_0": "int8",
    "q4_0": "int4",
    "q4_1": "int4",
    "iq4_nl": "int4",
    "q4_k_m": "int4",
}
_FILE = "imatrix.gguf"


def gguf_type(recipe: Recipe) -> GgufType:
    """The type of the decoder, should the format be gguf."""
    return recipe.gguf_type or _TYPES[recipe.precision]


def imatrix_misfit(recipe: Recipe) -> str | None:
    """Why the recipe cannot have the importance matrix that it asks for, or None."""
    if recipe.imatrix == "auto":
        return None
    if recipe.format != "gguf":
        return f"imatrix {recipe.imatrix} belongs to format gguf, not {recipe.format}"
    if recipe.imatrix == "off":
        return None
    if gguf_type(recipe) not in WEIGHED:
        return f"imatrix keep: {gguf_type(recipe)} is made without one; choose {', '.join(WEIGHED)}"
    return "imatrix keep needs images: add --calibrate scenes, or a folder" if recipe.calibration is None else None


def is_weighed(recipe: Recipe) -> bool:
    """Whether calibration data say which errors of the decoder's weights matter."""
    weighed = recipe.format == "gguf" and gguf_type(recipe) in WEIGHED
    return weighed and recipe.calibration is not None and recipe.imatrix != "off"


def write_importances(
    recipe: Recipe, model: VlmModel, calibration: Calibration | None, folder: Path, progress: Progress
) -> Path | None:
    """Collect importances from the calibration data into a file in `folder`, if `is_weighed` and codes are to choose.

    Raises:
        EdgeVLMError: the samples cannot be run through the model.
    """
    if calibration is None or model.quantized or not is_weighed(recipe):
        return None
    path = folder / _FILE
    write_imatrix(path, make(model, calibration, progress))
    return path
