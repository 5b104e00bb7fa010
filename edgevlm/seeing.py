"""What a session makes of images: parts of its context, the latest of them remembered.

In: prepared images, and the vision engine. Out: the parts that take an image's place in a conversation, or, for models
with a fusion, the `Frames` that go into it. An image that was just asked about is not encoded again, unless its tokens
are chosen by the question and this is another one.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict

from edgevlm.assembly import ImageAssembler
from edgevlm.bundle import Bundle
from edgevlm.context import Frames, Part, image_parts
from edgevlm.preprocess import PreparedImage
from edgevlm.question import GuidedVision, QuestionReader
from edgevlm.runtimes.base import EngineOptions, Float32, VisionEngine
from edgevlm.runtimes.select import open_text
from edgevlm.spec import ModelSpec
from edgevlm.tile_tokens import encode_image
from edgevlm.tokenizer import Tokenizer

_REMEMBERED = 8


def open_questions(bundle: Bundle, options: EngineOptions) -> QuestionReader | None:
    """Load the text tower with its tokenizer; None for a bundle whose image tokens do not depend on the question.

    Raises:
        BundleError: the bundle lacks one of them, or the tokenizer cannot be read.
        InputError: ONNX Runtime is not installed.
        EngineError: it cannot load the graph.
    """
    spec = bundle.spec.vision.text
    if spec is None:
        return None
    tokenizer = Tokenizer(bundle.artifact("text_tokenizer", ".json"))
    engine = open_text(bundle, options)
    assert engine is not None
    return QuestionReader(spec, tokenizer, engine)


class ImageReader:
    """Encodes the images of one session and remembers the last eight."""

    def __init__(
        self,
        spec: ModelSpec,
        tokenizer: Tokenizer,
        engine: VisionEngine,
        newline: Float32 | None,
        questions: QuestionReader | None = None,
    ) -> None:
        """Prepare for one model; `questions` for one whose image tokens depend on the question.

        Raises:
            BundleError: the model needs a newline `[H]`, and there is none.
        """
        assert (questions is None) == (spec.vision.text is None), "questions are for models that choose by them"
        self._spec = spec
        self._questions = questions
        self._engine = engine
        self._assembler = ImageAssembler(spec, tokenizer, newline)
        self._known: OrderedDict[bytes, list[Part]] = OrderedDict()

    def positions(self, image: PreparedImage) -> int:
        """Positions that the image takes in the context, known before it is encoded."""
        return self._assembler.positions(image)

    def read(self, image: PreparedImage, question: str, *, reuse: bool) -> tuple[list[Part], bool]:
        """What an image becomes in the context of a question, and whether that was known.

        Raises:
            EngineError: an engine failed.
        """
        key, engine = image.key, self._engine
        if self._questions is not None:
            key = hashlib.blake2b(image.key + question.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        known = self._known.get(key)
        if known is not None and reuse:
            self._known.move_to_end(key)
            return known, True
        if self._questions is not None:
            engine = GuidedVision(engine, self._questions.embed(question))
        features, places = encode_image(engine, image, self._spec)
        if self._spec.fusion is None:
            parts = image_parts(self._assembler.pieces(features, image, places), key)
        else:
            parts = [Frames(key, tuple(features), self._spec.fusion.image_tokens)]
        self._known[key] = parts
        self._known.move_to_end(key)
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        return parts, False
