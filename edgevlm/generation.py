"""The token loop: from the logits of a prompt to text, one token after the other.

In: a decoder engine whose prompt has been prefilled, and what governs sampling and stopping. Out: pieces of text as
they become certain, and at the end what was generated and when. The work per token outside the engine is one argmax (or
one draw), one table look-up and a little bookkeeping.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Generator
from dataclasses import dataclass

from edgevlm.answer import FinishReason, GenerationOptions
from edgevlm.runtimes.base import DecoderEngine, Float32
from edgevlm.sampling import Sampler, StopStrings
from edgevlm.tokenizer import Tokenizer


@dataclass(frozen=True)
class Generated:
    """What the loop produced.

    Attributes:
        text: the answer.
        token_ids: as sampled, without the stop token.
        kept: how many of them lie wholly in the text (all, unless a stop string cut it).
        rest: the end of the text that these do not cover.
        finish_reason: why it ended.
        first_token_s: seconds from the logits to the first token's text.
        gaps_s: seconds from each token to the next.
    """

    text: str
    token_ids: tuple[int, ...]
    kept: int
    rest: str
    finish_reason: FinishReason
    first_token_s: float
    gaps_s: tuple[float, ...]


def generate_tokens(
    decoder: DecoderEngine,
    logits: Float32,
    tokenizer: Tokenizer,
    stop_token_ids: frozenset[int],
    options: GenerationOptions,
    on_decoded: Callable[[int], None],
) -> Generator[str, None, Generated]:
    """Yield text pieces; return the whole.

    Args:
        decoder: holds the prompt.
        logits: of the prompt's last position.
        tokenizer: of the model.
        stop_token_ids: end the answer.
        options: sampling and limits.
        on_decoded: called with each token that went into the decoder's cache.
    """
    clock, sampler = time.perf_counter, Sampler(options.sampling)
    detokenizer, stops = tokenizer.detokenizer(), StopStrings(tuple(options.stop))
    tokens: list[int] = []
    pieces: list[str] = []
    lengths: list[int] = []
    durations: list[float] = []
    length = 0
    finish: FinishReason = "length"
    resumed = clock()
    while True:
        token = sampler(logits)
        if token in stop_token_ids:
            finish = "stop"
            if not tokens:
                durations.append(clock() - resumed)
            break
        decoded = detokenizer.add(token)
        piece = stops.add(decoded)
        tokens.append(token)
        length += len(decoded)
        lengths.append(length)
        now = clock()
        durations.append(now - resumed)
        resumed = now
        if piece:
            pieces.append(piece)
            yield piece
            resumed = clock()
        if stops.found:
            finish = "stop"
            break
        if len(tokens) == options.max_tokens or decoder.position >= decoder.context_length:
            break
        logits = decoder.decode(token)
        on_decoded(token)
    if not stops.found:
        last = stops.add(detokenizer.finish()) + stops.finish()
        if last:
            pieces.append(last)
            yield last
    text = "".join(pieces)
    kept = _tokens_within(lengths, len(text)) if stops.found else len(tokens)
    rest = text[lengths[kept - 1] if kept else 0 :] if stops.found else ""
    return Generated(text, tuple(tokens), kept, rest, finish, durations[0], tuple(durations[1:]))


def _tokens_within(lengths: list[int], size: int) -> int:
    """How many tokens end within the first `size` characters, given the text's length after each.

    A token that adds no character belongs to the one after it, which may lie beyond.
    """
    if size == 0:
        return 0
    index = bisect_left(lengths, size)
    return index + 1 if lengths[index] == size else index
