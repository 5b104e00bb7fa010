"""An answer as it is generated: an iterator of text that ends with the whole answer."""

from __future__ import annotations

from collections.abc import Generator, Iterator

from edgevlm.answer import Answer
from edgevlm.errors import EdgeVLMError


class Stream(Iterator[str]):
    """Pieces of an answer's text as they become certain. Exhaust it, or close it to stop early."""

    def __init__(self, pieces: Generator[str, None, Answer]) -> None:
        self._pieces = pieces
        self._answer: Answer | None = None

    def __next__(self) -> str:
        try:
            return next(self._pieces)
        except StopIteration as end:
            self._answer = self._answer or end.value
            raise

    @property
    def answer(self) -> Answer:
        """The whole answer.

        Raises:
            EdgeVLMError: the stream is not exhausted.
        """
        if self._answer is None:
            raise EdgeVLMError("the stream has not ended", "stream", "iterate over it first")
        return self._answer

    def close(self) -> None:
        """Stop generating; the session is free again, and the conversation is as it was before."""
        self._pieces.close()
