"""What a session is asked for and what it returns: generation options, an answer, and how long each stage took."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias, TypedDict

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import InputError
from edgevlm.sampling import SamplingOptions

FinishReason: TypeAlias = Literal["stop", "length"]


class GenerationArguments(TypedDict, total=False):
    """The keyword arguments of `generate`, `stream` and `ask`; see `GenerationOptions`."""

    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    seed: int | None
    stop: tuple[str, ...] | list[str]
    reuse: bool
    ignore_eos: bool
    keep_logits: bool


@dataclass(frozen=True)
class GenerationOptions:
    """How to generate.

    Attributes:
        max_tokens: at most this many tokens.
        temperature: 0 is greedy.
        top_p: nucleus sampling; 1 is off.
        top_k: keep the k most probable tokens; 0 is off.
        seed: of the random draws; None draws one.
        stop: strings that end the answer; they are not part of it.
        reuse: take image embeddings and the front of the prompt from the caches where these hold them.
        ignore_eos: go on past the model's stop tokens up to `max_tokens`, for timing answers of equal length.
        keep_logits: keep those of the first token in the answer, for comparing models.

    Raises:
        InputError: a value is out of range.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] | list[str] = ()
    reuse: bool = True
    ignore_eos: bool = False
    keep_logits: bool = False

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise InputError(f"max_tokens {self.max_tokens} is out of range", "max_tokens", "give 1 or more")
        if isinstance(self.stop, str) or not all(self.stop):
            raise InputError("stop is not a list of strings that are not empty", "stop", "give a list, e.g. ['\\n']")
        _ = self.sampling

    @property
    def sampling(self) -> SamplingOptions:
        """The part that concerns the choice of tokens."""
        return SamplingOptions(self.temperature, self.top_k, self.top_p, self.seed)


@dataclass(frozen=True)
class AnswerStats:
    """How an answer came about. Times in milliseconds, each stage from the end of the one before it.

    Attributes:
        preprocess_ms: decoding and resizing the image, rendering and tokenising the prompt.
        vision_ms: pixels to image embeddings; next to nothing where the image was cached.
        fusion_ms: image and prompt through the fusion; None for models without one.
        prefill_ms: the prompt through the decoder.
        first_decode_ms: the first token sampled and turned into text.
        token_gaps_ms: from each token to the next, in order; time the caller took between pieces is left out.
        image_tokens: positions that images take in this prompt.
        prompt_tokens: positions of the whole prompt, images and earlier turns included.
        reused_tokens: of these, positions that were in the key/value cache already.
        image_cached: this prompt's new images were all encoded before.
        vision_engine: name and version.
        decoder_engine: name and version.
    """

    preprocess_ms: float
    vision_ms: float
    fusion_ms: float | None
    prefill_ms: float
    first_decode_ms: float
    token_gaps_ms: tuple[float, ...]
    image_tokens: int
    prompt_tokens: int
    reused_tokens: int
    image_cached: bool
    vision_engine: str
    decoder_engine: str

    @property
    def ttft_ms(self) -> float:
        """Time to first token: image and prompt handed over until the first token is text; the sum of the stages."""
        return self.preprocess_ms + self.vision_ms + (self.fusion_ms or 0) + self.prefill_ms + self.first_decode_ms

    @property
    def decode_tokens_per_second(self) -> float:
        """Tokens per second after the first; 0 where there are none."""
        total = sum(self.token_gaps_ms)
        return 1000 * len(self.token_gaps_ms) / total if total > 0 else 0.0


@dataclass(frozen=True)
class Answer:
    """A finished answer; `str(answer)` is its text.

    Attributes:
        text: without special tokens and stop strings.
        token_ids: as sampled, the stop token left out.
        finish_reason: `stop` (stop token or string) or `length` (max_tokens, or the context is full).
        stats: times and counts.
        first_logits: float32 `[V]`, of the first token, if they were asked for.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    stats: AnswerStats
    first_logits: NDArray[np.float32] | None = field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        return self.text
