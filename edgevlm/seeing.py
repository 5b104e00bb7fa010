"""What a session makes of images: parts of its context, the latest of them remembered.

In: prepared images, and the vision engine. Out: the parts that take an image's place in a conversation, or, for models
with a fusion, the `Frames` that go into it. An image that was just asked about is not encoded again.
"""

from __future__ import annotations

from collections import OrderedDict

from edgevlm.assembly import ImageAssembler
from edgevlm.context import Frames, Part, image_parts
from edgevlm.preprocess import PreparedImage
from edgevlm.runtimes.base import Float32, VisionEngine
from edgevlm.spec import ModelSpec
from edgevlm.tile_tokens import encode_image
from edgevlm.tokenizer import Tokenizer

_REMEMBERED = 8


class ImageReader:
    """Encodes the images of one session and remembers the last eight."""

    def __init__(self, spec: ModelSpec, tokenizer: Tokenizer, engine: VisionEngine, newline: Float32 | None) -> None:
        """Prepare for one model.

        Raises:
            BundleError: the model needs a newline `[H]`, and there is none.
        """
        self._spec = spec
        self._engine = engine
        self._assembler = ImageAssembler(spec, tokenizer, newline)
        self._known: OrderedDict[bytes, list[Part]] = OrderedDict()

    def positions(self, image: PreparedImage) -> int:
        """Positions that the image takes in the context, known before it is encoded."""
        return self._assembler.positions(image)

    def read(self, image: PreparedImage, *, reuse: bool) -> tuple[list[Part], bool]:
        """What an image becomes in the context, and whether that was known.

        Raises:
            EngineError: the engine failed.
        """
        known = self._known.get(image.key)
        if known is not None and reuse:
            self._known.move_to_end(image.key)
            return known, True
        features, places = encode_image(self._engine, image, self._spec)
        if self._spec.fusion is None:
            parts = image_parts(self._assembler.pieces(features, image, places), image.key)
        else:
            parts = [Frames(image.key, tuple(features), self._spec.fusion.image_tokens)]
        self._known[image.key] = parts
        self._known.move_to_end(image.key)
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        return parts, False
