"""What a TensorRT bundle is written for, and what cannot be.

In: a recipe's TensorRT version and context length, and a `ModelSpec`. Out: `TensorRtOptions`, or the reason against a
model. Versions and operators: docs/tensorrt.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgevlm.errors import InputError
from edgevlm.recipe import Precision, StoredPrecision, TensorRtDtype, VisionPrecision
from edgevlm.runtimes.build_plan import ComputeType
from edgevlm.runtimes.checks import DEFAULT_CONTEXT
from edgevlm.spec import ModelSpec

#: What is written for where nobody names a version or a target.
NEWEST = "10.16"
#: The first with INT4 weights, and the first with operators for rotation, RMS normalisation and the cache.
_OLDEST, _FUSED_FROM = (10, 0), (10, 15)


@dataclass(frozen=True)
class TensorRtOptions:
    """A version `(major, minor)`, positions of the key/value cache, and the type of what is not float32."""

    version: tuple[int, int]
    kv_length: int
    dtype: TensorRtDtype = "fp16"

    @property
    def fused(self) -> bool:
        """Whether the version has an operator each for attention, rotation and the cache."""
        return self.version >= _FUSED_FROM

    def compute(self, precision: VisionPrecision) -> ComputeType:
        """What a graph with weights of that precision computes in."""
        if precision == "fp32":
            return "float32"
        return "bfloat16" if self.dtype == "bf16" else "float16"

    def stored(self, precision: VisionPrecision) -> StoredPrecision:
        """How weights of that precision are stored: those of 16 bits have the type that is computed in."""
        return self.dtype if precision == "fp16" else precision

    def __str__(self) -> str:
        return f"{self.version[0]}.{self.version[1]}"


def tensorrt_options(
    version: str | None, context_length: int | None, spec: ModelSpec, dtype: TensorRtDtype | None = None
) -> TensorRtOptions:
    """What to write for.

    Args:
        version: such as `10.3` or `10.3.0`; None takes the newest that EdgeVLM knows.
        context_length: None takes what engines allocate when nobody says.
        spec: of the model.
        dtype: of what is not float32; None takes fp16.

    Raises:
        InputError: the version is too old, or the model has fewer positions.
    """
    numbers = tuple(int(part) for part in (version or NEWEST).split("."))
    major_minor = (numbers[0], numbers[1] if len(numbers) > 1 else 0)
    if major_minor < _OLDEST:
        hint = f"give {_OLDEST[0]}.{_OLDEST[1]} or newer"
        raise InputError(f"TensorRT {version} is too old: it has no INT4 weights", "tensorrt_version", hint)
    most = spec.decoder.max_position_embeddings
    wanted = context_length or min(most, DEFAULT_CONTEXT)
    if wanted > most:
        what = f"the model cannot have a context of {wanted} positions"
        raise InputError(what, "context_length", f"give 1 to {most}")
    image = image_positions(spec)
    if wanted <= image:
        what = f"an image takes {image} positions, and the context has {wanted}"
        raise InputError(what, "context_length", f"give {image + 1} or more, or prune image tokens")
    return TensorRtOptions(major_minor, wanted, dtype or "fp16")


def image_positions(spec: ModelSpec) -> int:
    """Positions that an image, or one tile of it, takes in the decoder."""
    return spec.vision.image_tokens if spec.fusion is None else spec.fusion.image_tokens


def supports(spec: ModelSpec, precision: Precision, vision_precision: VisionPrecision) -> str | None:
    """Why this model cannot be exported like this; None when it can."""
    del precision  # every one exists
    if spec.decoder.token_drop is not None:
        return f"{spec.decoder.token_drop.name} drops image tokens inside the decoder, so layers differ in cache length"
    if spec.preprocess.patches is not None:
        return "its vision graph takes images of any shape, and derives sizes from values, which TensorRT cannot"
    if spec.vision.reducer is not None and spec.vision.reducer.shared:
        return f"{spec.vision.reducer.name} shares tokens out among tiles, so their number differs from tile to tile"
    if spec.vision.text is not None:
        return "the question chooses its image tokens, and the vision engine takes pixels alone; use --format onnx"
    if vision_precision in ("int8", "int4"):
        return f"vision weights in {vision_precision} are stored for CPUs; use fp16, or w8a8 with --calibrate"
    return None
