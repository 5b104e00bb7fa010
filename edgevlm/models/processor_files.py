"""What the processor files beside a checkpoint say: `preprocessor_config.json` and `processor_config.json`.

Transformers 5 writes the image processor's fields into `processor_config.json`; older checkpoints have them in a file
of their own. What these files say must agree with `config.json`, or images would not fit the weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edgevlm.errors import CheckpointError
from edgevlm.models.checkpoint import read_json
from edgevlm.models.configs import PublishedConfig, section

_HINT = "give the published files"
_FILTERS: dict[int, Literal["lanczos", "bilinear", "bicubic"]] = {1: "lanczos", 2: "bilinear", 3: "bicubic"}


class ImageProcessorConfig(PublishedConfig):
    """The fields that every image processor has; a family adds its own and their defaults."""

    do_resize: Literal[True] = True
    do_rescale: Literal[True] = True
    do_normalize: Literal[True] = True
    do_flip_channel_order: Literal[False] = False
    rescale_factor: float = 1 / 255
    resample: Literal[1, 2, 3]
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]

    @property
    def filter(self) -> Literal["lanczos", "bilinear", "bicubic"]:
        """The resampling filter by name; files number them as Pillow does."""
        return _FILTERS[self.resample]


class ImageSize(PublishedConfig):
    """A size by its two sides, in pixels."""

    height: int
    width: int


@dataclass(frozen=True)
class ProcessorFiles:
    """The raw fields.

    Attributes:
        image: of the image processor; empty where there is no file.
        image_where: the file they come from.
        processor: of the processor around it; empty where there is no file.
        processor_where: its file.
    """

    image: dict[str, Any]
    image_where: str
    processor: dict[str, Any]
    processor_where: str

    def agree(self, field: str, expected: Any) -> None:
        """Refuse a processor whose field differs from what `config.json` amounts to; an absent one agrees.

        Raises:
            CheckpointError: names the field and both values.
        """
        disagree(field, self.processor.get(field), expected, self.processor_where)


def read_processor_files(folder: Path) -> ProcessorFiles:
    """Read both files, as far as they exist.

    Raises:
        CheckpointError: one is not a JSON object.
    """
    image_file, processor_file = folder / "preprocessor_config.json", folder / "processor_config.json"
    processor = read_json(processor_file) if processor_file.is_file() else {}
    if image_file.is_file():
        return ProcessorFiles(read_json(image_file), str(image_file), processor, str(processor_file))
    image = section(processor, "image_processor", str(processor_file))
    return ProcessorFiles(image, str(processor_file), processor, str(processor_file))


def disagree(field: str, found: Any, expected: Any, where: str) -> None:
    """Refuse a value that a processor file gives and that differs from what `config.json` amounts to.

    Raises:
        CheckpointError: names the field and both values.
    """
    if found is not None and found != expected:
        raise CheckpointError(
            f"{field} is {found!r:.60} here, but config.json amounts to {expected!r:.60}", where, _HINT
        )


def check_pixels(config: ImageProcessorConfig, where: str) -> None:
    """Refuse pixels that are not bytes divided by 255.

    Raises:
        CheckpointError: names the factor.
    """
    if not math.isclose(config.rescale_factor, 1 / 255, rel_tol=1e-6):
        raise CheckpointError(f"rescale_factor {config.rescale_factor} is not supported", where, "supported: 1/255")
    if min(config.image_std) <= 0:
        raise CheckpointError(f"image_std {list(config.image_std)} is not positive", where, _HINT)
