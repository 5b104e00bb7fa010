"""What can be known of a checkpoint without its weights: its spec, and what an image becomes in its prompt.

In: a folder, a `zoo:` name, or the name of a size that `edgevlm zoo synth` writes. Out: a `Description`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from edgevlm.assembly import ImageAssembler
from edgevlm.errors import InputError
from edgevlm.models import describe
from edgevlm.preprocess import PreparedImage, prepare
from edgevlm.spec import ModelSpec
from edgevlm.tokenizer import Tokenizer


@dataclass(frozen=True)
class ImageCost:
    """An image as the model sees it: so many runs of the vision tower, of this size, and positions in the prompt."""

    runs: int
    height: int
    width: int
    positions: int


@dataclass(frozen=True)
class Description:
    """A model without weights; `tokenizer` counts the text between tiles, where there is some."""

    spec: ModelSpec
    tokenizer: Tokenizer | None = None

    @classmethod
    def of(cls, folder: Path, resolution: int | None, prompt_template: str | None) -> Description:
        """Read the checkpoint in `folder`; its files may have holes where weights would be.

        Raises:
            CheckpointError: it cannot be used.
            InputError: it cannot have this resolution or template.
        """
        spec, tokenizer = describe(folder, resolution=resolution, prompt_template=prompt_template)
        return cls(spec, None if tokenizer is None else Tokenizer(tokenizer))

    def image(self, spec: ModelSpec, width: int, height: int) -> ImageCost:
        """An image of this size, for the spec after some passes.

        Raises:
            InputError: the model cannot cut such an image.
        """
        if width < 1 or height < 1:
            raise InputError(f"an image of {width} x {height} pixels", "--image-size", "write it as 1024x768")
        prepared = prepare(Image.new("RGB", (width, height)), spec.preprocess)
        newline = np.zeros(spec.decoder.hidden_size, np.float32)
        positions = ImageAssembler(spec, self.tokenizer, newline).positions(prepared)
        return ImageCost(*_runs(spec, prepared), positions)


def _runs(spec: ModelSpec, image: PreparedImage) -> tuple[int, int, int]:
    if spec.preprocess.patches is not None:
        return 1, image.tiles.shape[1], image.tiles.shape[2]
    return len(image.tiles), spec.vision.image_size, spec.vision.image_size
