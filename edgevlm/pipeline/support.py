"""Whether a format can hold a model, by its spec alone."""

from __future__ import annotations

from edgevlm.exporters import onnx, tensorrt
from edgevlm.exporters.gguf.layout import supports as gguf_supports
from edgevlm.recipe import Format, GgufType, Precision, VisionPrecision
from edgevlm.spec import ModelSpec


def refusal(
    spec: ModelSpec, format_: Format, precision: Precision, gguf_type: GgufType, vision: VisionPrecision
) -> str | None:
    """Why a model cannot be exported so, or None.

    Args:
        spec: of the model after its passes.
        format_: of the artefacts.
        precision: of the decoder.
        gguf_type: of the decoder, should the format be gguf.
        vision: precision of the vision tower.
    """
    if format_ == "tensorrt":
        return tensorrt.supports(spec, precision, vision)
    if format_ == "gguf":
        return gguf_supports(spec, gguf_type) or onnx.supports(spec, "fp32", vision)
    return onnx.supports(spec, precision, vision)
