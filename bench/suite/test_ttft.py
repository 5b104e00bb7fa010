"""Time to first token, its stages, and decoding of a full-size model in each format, with the engines `auto` picks."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from statistics import median
from typing import Any

import pytest

import edgevlm
from edgevlm.answer import Answer
from edgevlm.bench.images import photo_like
from edgevlm.bench.suite.full_size import Exported
from edgevlm.session import Session

STAGES = ("preprocess_ms", "vision_ms", "prefill_ms", "first_decode_ms")
ROUNDS = 7
TOKENS = 33


@pytest.fixture(scope="module", params=["onnx", "gguf"])
def session(request: pytest.FixtureRequest, exported: Exported) -> Iterator[Session]:
    with edgevlm.load(exported(request.param, "int4").bundle) as loaded:
        yield loaded


def _answers(benchmark: Any, session: Session, tokens: int) -> list[Answer]:
    """Timed answers, each about an image of its own, after one that is not counted."""
    answers: list[Answer] = []
    numbers = count()

    def image() -> tuple[tuple[bytes], dict[str, Any]]:
        return (photo_like(0, next(numbers), 1024, 768),), {}

    def answer(photo: bytes) -> None:
        prompt = "Describe the colours of this image"
        answers.append(session.generate(photo, prompt, max_tokens=tokens, ignore_eos=True, reuse=False))

    benchmark.pedantic(answer, setup=image, rounds=ROUNDS, warmup_rounds=1)
    vision, decoder = session.engine_stats()
    benchmark.extra_info.update(vision_engine=vision.name, decoder_engine=decoder.name)
    return answers[1:]


def test_time_to_first_token(benchmark: Any, session: Session) -> None:
    answers = _answers(benchmark, session, 1)
    stages = {stage: round(median(getattr(answer.stats, stage) for answer in answers), 3) for stage in STAGES}
    benchmark.extra_info.update(stages, prompt_tokens=answers[0].stats.prompt_tokens)
    assert all(answer.stats.reused_tokens == 0 for answer in answers)
    print(f"\nTTFT {median(answer.stats.ttft_ms for answer in answers):.0f} ms: {stages}")


def test_decode(benchmark: Any, session: Session) -> None:
    answers = _answers(benchmark, session, TOKENS)
    gaps = [gap for answer in answers for gap in answer.stats.token_gaps_ms]
    assert len(gaps) == ROUNDS * (TOKENS - 1)
    rate = 1000 / median(gaps)
    benchmark.extra_info.update(decode_tokens_per_second=round(rate, 2))
    print(f"\ndecode {rate:.1f} tokens/s")
