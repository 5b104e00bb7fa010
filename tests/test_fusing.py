"""Sessions of models with a fusion: what is fused, what is reused, videos, refusals. The engines are fake."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_engines import FUSED, FakeFusion, fake_session, fused_session

from edgevlm.errors import InputError
from edgevlm.preprocess import preprocess
from edgevlm.prompt import IMAGE_PLACEHOLDER, Message
from edgevlm.runtimes.base import Float32
from edgevlm.session import Session

RED = np.full((10, 20, 3), (200, 0, 0), np.uint8)
BLUE = np.full((10, 20, 3), (0, 0, 200), np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fusing")


def expected_rows(session: Session, frames: list[Any], ids: list[int]) -> Float32:
    """The specification's statement: id 0 and the image stay out, text is the mean over the frames."""
    vision, fusion, decoder = fake_session_parts(session)
    text = [index for index, token in enumerate(ids) if token > 0]
    raw = decoder.embed(np.array(ids, np.int32))
    tokens, texts = [], []
    for frame in frames:
        fused = FakeFusion().fuse(vision.encode(preprocess(frame, session.spec.preprocess))[0], raw[text])
        tokens.append(fused[:FUSED])
        texts.append(fused[FUSED:])
    raw[text] = np.mean(texts, axis=0)
    place = ids.index(IMAGE_PLACEHOLDER)
    assert fusion.runs == len(frames)
    rows: Float32 = np.concatenate([raw[:place], *tokens, raw[place + 1 :]]).astype(np.float32)
    return rows


def fake_session_parts(session: Session) -> tuple[Any, Any, Any]:
    return session._vision, session._fusion, session._decoder


def cached_rows(decoder: Any, count: int) -> Float32:
    return np.stack([np.frombuffer(row, np.float32) for row in decoder.cache[:count]])


@pytest.mark.parametrize("frames", [[RED], [RED, BLUE, RED]], ids=["image", "video"])
def test_the_decoder_is_given_the_fused_prompt(folder: Path, frames: list[Any]) -> None:
    session, _, _, decoder = fused_session(folder)
    # The zoo's token 0 is an exclamation mark.
    question = "Is! it! red!"
    answer = session.generate(frames, question, max_tokens=1, video=len(frames) > 1)
    ids = session.formatter.start([*session.formatter.system_messages(None), Message("user", question, 1)])
    assert 0 in ids
    rows = expected_rows(session, frames, ids)
    assert answer.stats.prompt_tokens == len(rows) == len(ids) - 1 + len(frames) * FUSED
    assert answer.stats.image_tokens == len(frames) * FUSED
    np.testing.assert_allclose(cached_rows(decoder, len(rows)), rows, rtol=1e-5)
    place = ids.index(0)
    shift = FUSED * len(frames) - 1 if place > ids.index(IMAGE_PLACEHOLDER) else 0
    np.testing.assert_array_equal(cached_rows(decoder, len(rows))[place + shift], np.full(8, 0.5))


def test_without_an_image_nothing_is_fused(folder: Path) -> None:
    session, _, fusion, decoder = fused_session(folder)
    stats = session.generate(None, "What?", max_tokens=2).stats
    plain, _, other = fake_session(folder)
    plain.generate(None, "What?", max_tokens=2)
    assert decoder.cache == other.cache
    assert fusion.runs == 0
    assert stats.fusion_ms is not None


def test_decoded_tokens_are_plain_and_the_same_prompt_is_reused_whole(folder: Path) -> None:
    session, vision, fusion, decoder = fused_session(folder)
    first = session.generate(RED, "What?", max_tokens=4)
    assert decoder.cache[first.stats.prompt_tokens] == np.int32(first.token_ids[0]).tobytes()
    again = session.generate(RED, "What?", max_tokens=4)
    assert again.stats.reused_tokens == first.stats.prompt_tokens - 1
    assert (fusion.runs, vision.encoded, again.stats.image_cached) == (1, 1, True)
    other = session.generate(RED, "What now?", max_tokens=4)
    assert (fusion.runs, vision.encoded, other.stats.reused_tokens) == (2, 1, 0)
    fresh = fused_session(folder)[0].generate(RED, "What now?", max_tokens=4)
    assert other.token_ids == fresh.token_ids
    cold = session.generate(RED, "What now?", max_tokens=4, reuse=False)
    assert (cold.token_ids, cold.stats.reused_tokens, fusion.runs) == (fresh.token_ids, 0, 3)


def test_a_second_turn_fuses_the_whole_conversation(folder: Path) -> None:
    session, _, fusion, decoder = fused_session(folder)
    chat = session.chat()
    first = chat.ask("What?", RED, max_tokens=3)
    second = chat.ask("And now?", max_tokens=3)
    assert (fusion.runs, second.stats.reused_tokens) == (2, 0)
    messages = [*session.formatter.system_messages(None), Message("user", "What?", 1)]
    begun = session.formatter.start(messages)
    messages += [Message("assistant", first.text), Message("user", "And now?")]
    ids = [*begun, *first.token_ids, *session.formatter.follow_up(messages)]
    fusion.runs = 1
    rows = expected_rows(session, [RED], ids)
    assert second.stats.prompt_tokens == len(rows)
    np.testing.assert_allclose(cached_rows(decoder, len(rows)), rows, rtol=1e-5)


def test_stages_add_up_to_the_time_to_first_token(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(10_000))
    monkeypatch.setattr("time.perf_counter", lambda: float(next(ticks)))
    stats = fused_session(folder)[0].generate(RED, "a?", max_tokens=4).stats
    assert stats.fusion_ms is not None
    stages = [stats.preprocess_ms, stats.vision_ms, stats.fusion_ms, stats.prefill_ms, stats.first_decode_ms]
    assert min(stages) >= 1000
    assert stats.ttft_ms == sum(stages)


def test_what_a_video_cannot_be_is_refused(folder: Path) -> None:
    session, vision, fusion, _ = fused_session(folder)
    for nothing in ([], None):
        with pytest.raises(InputError, match="the video has no frames"):
            session.generate(nothing, "What?", video=True)
    with pytest.raises(InputError, match="2 images, but this model's template takes 1"):
        session.generate([RED, BLUE], "What?")
    with pytest.raises(InputError, match="takes no video"):
        fake_session(folder)[0].generate([RED, BLUE], "What?", video=True)
    with pytest.raises(InputError, match="positions, the context has 512"):
        session.generate([RED] * 520, "What?", video=True)
    assert (vision.encoded, fusion.runs) == (0, 0)
    assert session.generate([RED], "What?", video=True, max_tokens=1).text


def test_closing_closes_the_fusion(folder: Path) -> None:
    session, _, fusion, _ = fused_session(folder)
    session.close()
    assert fusion.closed
