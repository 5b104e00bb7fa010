"""LLaVA-Mini's prompt: image and text go through the fusion together, and the decoder sees what comes out.

In: the parts of a conversation, with one image or video among the token ids. Out: the parts that the decoder is given.
All ids are fused, system text and earlier turns included, because the published code does the same; a conversation
without an image is given as it is. The image's place and token id 0 stay out of the fusion, and id 0 keeps its plain
embedding (models specification, 3.2). Every frame of a video is fused with the whole text: its tokens stand one frame
after the other, and the text is the mean over the frames.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from edgevlm.context import Embeddings, Frames, Part
from edgevlm.errors import InputError
from edgevlm.runtimes.base import DecoderEngine, Float32, FusionEngine, Int32
from edgevlm.spec import FusionSpec


class PromptFuser:
    """Fuses the prompts of one session and remembers the last one."""

    def __init__(self, spec: FusionSpec, engine: FusionEngine, decoder: DecoderEngine) -> None:
        self._tokens = spec.image_tokens
        self._engine = engine
        self._decoder = decoder
        self._key = b""
        self._fused: list[Part] = []

    def fuse(self, parts: Sequence[Part], *, reuse: bool) -> list[Part]:
        """What the decoder is given for a conversation.

        It is one whole, so that nothing of it can be reused for another conversation, be it a longer one. It ends in a
        part of its own, since the last part always goes through the decoder.

        Args:
            parts: token ids and at most one `Frames`.
            reuse: take the last result if it was of the same parts.

        Raises:
            InputError: there are several images.
            EngineError: an engine failed.
        """
        images = [part for part in parts if isinstance(part, Frames)]
        if not images:
            return list(parts)
        if len(images) > 1:
            raise InputError(f"{len(images)} images, but this model takes one", "image", "ask in a new conversation")
        ids = np.array([part if isinstance(part, int) else 0 for part in parts], np.int32)
        place = next(index for index, part in enumerate(parts) if isinstance(part, Frames))
        content = b"%d" % place + images[0].key + ids.tobytes()
        key = hashlib.blake2b(content, digest_size=16, person=b"fused").digest()
        if not reuse or key != self._key:
            rows = self._rows(images[0].rows, ids, place)
            self._key, self._fused = key, [Embeddings(key, 0, rows[:-1]), Embeddings(key, 1, rows[-1:])]
        return list(self._fused)

    def _rows(self, frames: Sequence[Float32], ids: Int32, place: int) -> Float32:
        """The fused prompt `[L - 1 + F Q, hidden]`.

        Args:
            frames: embeddings `[V, hidden]` of each of F frames.
            ids: the prompt `[L]`, with 0 for the image.
            place: the image's, among the ids.

        Raises:
            EngineError: an engine failed.
        """
        raw, valid = np.array(self._decoder.embed(ids)), ids > 0
        text = np.ascontiguousarray(raw[valid])
        total = np.zeros_like(text)
        tokens = []
        for frame in frames:
            fused = self._engine.fuse(frame, text)
            tokens.append(fused[: self._tokens])
            total += fused[self._tokens :]
        raw[valid] = total / len(frames)
        return np.concatenate((raw[:place], *tokens, raw[place + 1 :]))
