"""How images become the one square that CLIP and SigLIP towers take, from the processor files beside a checkpoint.

CLIP's processor resizes the shortest side and cuts out the centre; SigLIP's stretches; LLaVA pads to a square in the
mean colour first where its configuration says so. What a file says must agree with the tower's configuration.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

from edgevlm.errors import CheckpointError
from edgevlm.models.configs import validated
from edgevlm.models.processor_files import ImageProcessorConfig, ProcessorFiles, check_pixels, disagree
from edgevlm.models.vit_names import CLIP_TYPES
from edgevlm.spec import PreprocessSpec

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SIGLIP_MEAN = SIGLIP_STD = (0.5, 0.5, 0.5)

_Size: TypeAlias = int | dict[str, int | None] | None


class _Clip(ImageProcessorConfig):
    """CLIP's image processor, with its defaults; LLaVA's adds `do_pad`."""

    resample: Literal[1, 2, 3] = 3
    image_mean: tuple[float, float, float] = CLIP_MEAN
    image_std: tuple[float, float, float] = CLIP_STD
    do_center_crop: bool = True
    do_pad: bool = False
    size: _Size = None
    crop_size: _Size = None


class _Siglip(_Clip):
    image_mean: tuple[float, float, float] = SIGLIP_MEAN
    image_std: tuple[float, float, float] = SIGLIP_STD
    do_center_crop: bool = False


def read_square(
    files: ProcessorFiles, tower: dict[str, Any], side: int, *, aspect_ratio: str | None = None
) -> PreprocessSpec:
    """The preprocessing of a tower that takes squares of `side` pixels.

    Args:
        files: the processor files; absent fields have the defaults of the tower's own processor.
        tower: the vision configuration.
        side: pixels that the configuration amounts to.
        aspect_ratio: LLaVA's `image_aspect_ratio`: `pad` wins over the processor's own shape.

    Raises:
        CheckpointError: the processor contradicts the configuration, or asks for what is not supported.
    """
    where = files.image_where
    raw = {key: value for key, value in files.image.items() if value is not None}
    config = validated(_Clip if tower.get("model_type") in CLIP_TYPES else _Siglip, raw, where)
    check_pixels(config, where)
    edges = _edges(config.size)
    if config.do_center_crop:
        edges |= _edges(config.crop_size)
    for edge in sorted(edges):
        disagree("the image size", edge, side, where)
    fit: Literal["pad", "crop", "stretch"] = "crop" if config.do_center_crop else "stretch"
    if aspect_ratio == "pad" or config.do_pad:
        fit = "pad"
    elif not config.do_center_crop and isinstance(config.size, dict) and "shortest_edge" in config.size:
        raise CheckpointError("a shortest_edge without do_center_crop leaves images of any shape", where)
    red, green, blue = (int(value * 255) for value in config.image_mean)
    return PreprocessSpec(side, fit, (red, green, blue), config.filter, config.image_mean, config.image_std)


def _edges(size: _Size) -> set[int]:
    """Every edge that a processor's size names."""
    values = size.values() if isinstance(size, dict) else [size]
    return {value for value in values if value is not None}
