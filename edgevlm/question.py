"""The question that an image is asked about, as a vector, for vision graphs that choose image tokens by it.

In: what the user wrote. Out: float32 `[1, P]`, the second input of the vision graph. The text is cut into pieces that
the text tower has room for; each becomes a unit vector, and the vector is their mean, so that its product with the unit
vector of a patch is the mean cosine over the pieces (CDPruner, arXiv 2506.10967).
"""

from __future__ import annotations

import numpy as np

from edgevlm.errors import EngineError
from edgevlm.runtimes.base import EngineStats, Float32, GuidedEngine, TextEngine, VisionEngine
from edgevlm.spec import TextTowerSpec
from edgevlm.tokenizer import Tokenizer


class QuestionReader:
    """Encodes questions and remembers the last one."""

    def __init__(self, spec: TextTowerSpec, tokenizer: Tokenizer, engine: TextEngine) -> None:
        """Prepare for one text tower, with its own tokenizer."""
        self._spec = spec
        self._tokenizer = tokenizer
        self._engine = engine
        self._last: tuple[str, Float32] | None = None

    def pieces(self, question: str) -> list[list[int]]:
        """Ids of the pieces of a question, each between the tokens that the tower wants around a text.

        Every character is text: a special token that a user types means nothing.
        """
        begin = [] if self._spec.begin_token_id is None else [self._spec.begin_token_id]
        ids = self._tokenizer.encode_plain(question)
        room = self._spec.max_position_embeddings - len(begin) - 1
        starts = range(0, max(len(ids), 1), room)
        return [[*begin, *ids[start : start + room], self._spec.end_token_id] for start in starts]

    def embed(self, question: str) -> Float32:
        """The vector `[1, P]` of a question.

        Raises:
            EngineError: the engine failed.
        """
        if self._last is None or self._last[0] != question:
            found = np.stack([self._engine.encode(np.array(ids, np.int32)) for ids in self.pieces(question)])
            units = found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
            self._last = question, units.mean(axis=0, keepdims=True, dtype=np.float32)
        return self._last[1]

    def close(self) -> None:
        """Free the engine."""
        self._engine.close()


class GuidedVision:
    """A vision engine while one question is asked."""

    def __init__(self, engine: VisionEngine, text: Float32) -> None:
        """Ask `text` `[1, P]` of each image.

        Raises:
            EngineError: the engine takes images alone.
        """
        if not isinstance(engine, GuidedEngine):
            raise EngineError("this engine does not take a question", "vision", "use onnxruntime or openvino")
        self._engine = engine
        self._text = text

    def encode(self, pixels: Float32) -> Float32:
        """Pixels `[B, 3, H, W]` to embeddings `[B, N, hidden]`."""
        return self._engine.encode_guided(pixels, self._text)

    def stats(self) -> EngineStats:
        """Those of the engine."""
        return self._engine.stats()

    def close(self) -> None:
        """Free the engine."""
        self._engine.close()
