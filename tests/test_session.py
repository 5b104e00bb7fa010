"""The session's own work: splicing, reuse, turns, stopping, timing. The engines are fake and remember what they got."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_engines import STOP, TOKENS, FakeDecoder, fake_session

from edgevlm.answer import GenerationOptions
from edgevlm.errors import EdgeVLMError, InputError
from edgevlm.preprocess import preprocess
from edgevlm.prompt import IMAGE_PLACEHOLDER, Message
from edgevlm.tokenizer import Tokenizer

RED = np.full((10, 20, 3), (200, 0, 0), np.uint8)
BLUE = np.full((10, 20, 3), (0, 0, 200), np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("session")


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return fake_session(folder)[0].tokenizer


def scripted(folder: Path, tokenizer: Tokenizer, text: str, stop: bool = True) -> tuple[Any, Any, FakeDecoder]:
    return fake_session(folder, FakeDecoder([*tokenizer.encode(text), *([STOP] if stop else [])]))


def test_image_embeddings_replace_the_placeholder(folder: Path) -> None:
    session, vision, decoder = fake_session(folder)
    session.generate(RED, "What?", max_tokens=1)
    ids = session.formatter.start([*session.formatter.system_messages(None), _user("What?")])
    place = ids.index(IMAGE_PLACEHOLDER)
    rows = [np.int32(token).tobytes() for token in ids]
    embeddings = [row.tobytes() for row in vision.encode(preprocess(RED, session.spec.preprocess))[0]]
    assert decoder.cache == [*rows[:place], *embeddings, *rows[place + 1 :]]


def test_answer_text_ids_and_reason(folder: Path, tokenizer: Tokenizer) -> None:
    session, *_ = scripted(folder, tokenizer, "It is 42.")
    answer = session.generate(RED, "What?")
    assert str(answer) == answer.text == "It is 42."
    assert list(answer.token_ids) == tokenizer.encode("It is 42.")
    assert answer.finish_reason == "stop"


def test_an_immediate_stop_token_is_an_empty_answer(folder: Path) -> None:
    session, *_ = fake_session(folder, FakeDecoder([STOP]))
    answer = session.generate(RED, "What?")
    assert (answer.text, answer.token_ids, answer.finish_reason) == ("", (), "stop")
    assert answer.stats.token_gaps_ms == ()


def test_stop_tokens_can_be_ignored_for_timing(folder: Path, tokenizer: Tokenizer) -> None:
    session, *_ = scripted(folder, tokenizer, "It is 42.")
    answer = session.generate(RED, "What?", ignore_eos=True, max_tokens=20)
    assert len(answer.token_ids) == 20
    assert STOP in answer.token_ids
    assert answer.text.startswith("It is 42.")


def test_max_tokens_ends_the_answer(folder: Path) -> None:
    session, _, decoder = fake_session(folder)
    answer = session.generate(RED, "What?", max_tokens=5)
    assert len(answer.token_ids) == 5
    assert answer.finish_reason == "length"
    assert decoder.position == answer.stats.prompt_tokens + 4, "the last token need not be decoded"


def test_the_answer_ends_where_the_context_does(folder: Path) -> None:
    prompt = fake_session(folder)[0].generate(RED, "What?", max_tokens=1).stats.prompt_tokens
    session, *_ = fake_session(folder, FakeDecoder(context_length=prompt + 3))
    answer = session.generate(RED, "What?")
    assert (len(answer.token_ids), answer.finish_reason) == (4, "length")
    session, *_ = fake_session(folder, FakeDecoder(context_length=prompt - 1))
    with pytest.raises(InputError, match="context"):
        session.generate(RED, "What?")


def test_a_prompt_that_is_too_long_is_refused_before_the_image_is_encoded(folder: Path) -> None:
    session, vision, _ = fake_session(folder)
    with pytest.raises(InputError, match="context"):
        session.generate(RED, "word " * 600)
    assert vision.encoded == 0


@pytest.mark.parametrize("text", ["数字は四十二 🙂 done", "plain letters, and more"])
def test_streamed_pieces_join_to_the_answer(folder: Path, tokenizer: Tokenizer, text: str) -> None:
    session, *_ = scripted(folder, tokenizer, text)
    stream = session.stream(RED, "What?")
    pieces = list(stream)
    assert "".join(pieces) == stream.answer.text == text
    assert len(pieces) > 1
    assert not any("\ufffd" in piece for piece in pieces)


def test_an_unfinished_character_is_shown_as_one_replacement(folder: Path, tokenizer: Tokenizer) -> None:
    session, *_ = fake_session(folder, FakeDecoder([*tokenizer.encode("a🙂")[:-1], STOP]))
    answer = session.generate(RED, "What?")
    assert answer.text == "a\ufffd" == tokenizer.decode(answer.token_ids)


def test_stop_strings_end_the_answer(folder: Path, tokenizer: Tokenizer) -> None:
    session, *_ = scripted(folder, tokenizer, "one two. three four. five", stop=False)
    pieces = []
    stream = session.stream(RED, "What?", stop=[". five", ". three"])
    for piece in stream:
        pieces.append(piece)
    assert stream.answer.text == "".join(pieces) == "one two"
    assert stream.answer.finish_reason == "stop"


def test_the_same_image_is_encoded_once_and_its_prefix_kept(folder: Path) -> None:
    session, vision, decoder = fake_session(folder)
    first = session.generate(RED, "What colour?", max_tokens=3)
    second = session.generate(RED.copy(), "How many?", max_tokens=3)
    assert vision.encoded == 1
    assert (first.stats.image_cached, second.stats.image_cached) == (False, True)
    assert first.stats.reused_tokens == 0
    assert second.stats.reused_tokens > TOKENS
    assert decoder.prefilled[1] == second.stats.prompt_tokens - second.stats.reused_tokens


def test_reuse_never_changes_an_answer(folder: Path) -> None:
    session, *_ = fake_session(folder)
    questions = [(RED, "a?"), (RED, "b?"), (BLUE, "b?"), (BLUE, "b?"), (None, "b?"), (RED, "a? and more"), (RED, "a?")]
    for image, question in questions:
        reused = session.generate(image, question, max_tokens=8)
        fresh = fake_session(folder)[0].generate(image, question, max_tokens=8)
        assert reused.text == fresh.text


def test_reuse_can_be_switched_off(folder: Path) -> None:
    session, vision, decoder = fake_session(folder)
    first = session.generate(RED, "a?", max_tokens=2)
    second = session.generate(RED, "a?", max_tokens=2, reuse=False)
    assert vision.encoded == 2
    assert (second.stats.reused_tokens, second.stats.image_cached) == (0, False)
    assert second.text == first.text
    assert decoder.prefilled == [first.stats.prompt_tokens] * 2


def test_the_image_cache_forgets_the_oldest(folder: Path) -> None:
    session, vision, _ = fake_session(folder)
    images = [np.full((8, 8, 3), value, np.uint8) for value in range(9)]
    for image in images:
        session.generate(image, "a?", max_tokens=1)
    session.generate(images[-1], "a?", max_tokens=1)
    assert vision.encoded == 9
    session.generate(images[0], "a?", max_tokens=1)
    assert vision.encoded == 10


def test_a_conversation_prefills_only_what_is_new(folder: Path) -> None:
    session, vision, decoder = fake_session(folder)
    chat = session.chat()
    first = chat.ask("What colour?", RED, max_tokens=4)
    second = chat.ask("And the shape?", max_tokens=4)
    assert vision.encoded == 1
    assert second.stats.image_tokens == TOKENS
    # The answer's last token was sampled but never decoded; it belongs to what is new.
    assert second.stats.reused_tokens == first.stats.prompt_tokens + 3
    assert decoder.prefilled[1] == second.stats.prompt_tokens - second.stats.reused_tokens < 30


def test_a_conversation_is_the_published_one(folder: Path, tokenizer: Tokenizer) -> None:
    script = [*tokenizer.encode("red"), STOP, *tokenizer.encode("round"), STOP]
    session, _, decoder = fake_session(folder, FakeDecoder(script))
    chat = session.chat()
    chat.ask("What colour?", RED)
    chat.ask("And the shape?")
    template = session.spec.prompt
    text = (
        f"<|im_start|>system\n{template.default_system}<|im_end|>\n<|im_start|>user\n<image>\nWhat colour?<|im_end|>\n"
        "<|im_start|>assistant\nred<|im_end|>\n<|im_start|>user\nAnd the shape?<|im_end|>\n<|im_start|>assistant\nround"
    )
    before, after = text.split("<image>")
    cached = [np.frombuffer(row, np.int32)[0] if len(row) == 4 else None for row in decoder.cache]
    assert cached == [*tokenizer.encode(before), *[None] * TOKENS, *tokenizer.encode(after)]


def test_a_stop_string_leaves_the_conversation_as_shown(folder: Path, tokenizer: Tokenizer) -> None:
    session, *_ = scripted(folder, tokenizer, "red. Also blue", stop=False)
    chat = session.chat()
    assert chat.ask("What?", RED, stop=["ed. Al"]).text == "r"
    decoder = session._decoder
    decoder.script = None
    chat.ask("And?", max_tokens=1)
    cached = [int(np.frombuffer(row, np.int32)[0]) for row in decoder.cache if len(row) == 4]
    assert "What?user" not in tokenizer.decode(cached)
    assert "assistant\nr\nuser\nAnd?" in tokenizer.decode(cached)


def test_a_conversation_survives_other_questions_between(folder: Path) -> None:
    session, vision, _ = fake_session(folder)
    chat = session.chat()
    chat.ask("What colour?", RED, max_tokens=4)
    session.generate(BLUE, "Something else", max_tokens=4)
    interrupted = chat.ask("And the shape?", max_tokens=4)
    alone = fake_session(folder)[0].chat()
    alone.ask("What colour?", RED, max_tokens=4)
    assert interrupted.text == alone.ask("And the shape?", max_tokens=4).text
    assert vision.encoded == 2


def test_a_second_image_may_come_later(folder: Path) -> None:
    session, vision, _ = fake_session(folder)
    chat = session.chat()
    chat.ask("What colour?", RED, max_tokens=2)
    answer = chat.ask("And this one?", BLUE, max_tokens=2)
    assert answer.stats.image_tokens == 2 * TOKENS
    assert vision.encoded == 2


def test_a_closed_stream_leaves_the_conversation_unchanged(folder: Path) -> None:
    session, *_ = fake_session(folder)
    chat = session.chat()
    stream = chat.stream("What colour?", RED)
    next(stream)
    stream.close()
    with pytest.raises(EdgeVLMError, match="not ended"):
        _ = stream.answer
    again = chat.ask("What colour?", RED, max_tokens=6)
    assert again.text == fake_session(folder)[0].generate(RED, "What colour?", max_tokens=6).text


def test_an_engine_failure_does_not_poison_the_cache(folder: Path) -> None:
    session, _, decoder = fake_session(folder)
    session.generate(RED, "a?", max_tokens=3)
    decoder.fail = True
    with pytest.raises(RuntimeError):
        session.generate(RED, "b?", max_tokens=3)
    decoder.fail = False
    expected = fake_session(folder)[0].generate(RED, "b?", max_tokens=3).text
    assert session.generate(RED, "b?", max_tokens=3).text == expected


def test_one_request_at_a_time(folder: Path) -> None:
    session, *_ = fake_session(folder)
    stream = session.stream(RED, "a?")
    next(stream)
    with pytest.raises(EdgeVLMError, match="another request"):
        session.generate(RED, "b?")
    stream.close()
    assert session.generate(RED, "b?", max_tokens=1).text


def test_stages_add_up_to_the_time_to_first_token(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that counts its own readings every stage takes some, and their sum is the whole."""
    ticks = iter(range(10_000))
    monkeypatch.setattr("time.perf_counter", lambda: float(next(ticks)))
    session, *_ = fake_session(folder)
    stats = session.generate(RED, "a?", max_tokens=4).stats
    stages = [stats.preprocess_ms, stats.vision_ms, stats.prefill_ms, stats.first_decode_ms]
    assert min(stages) >= 1000
    assert stats.ttft_ms == sum(stages)
    assert stats.fusion_ms is None
    assert len(stats.token_gaps_ms) == 3
    assert stats.decode_tokens_per_second == pytest.approx(3000 / sum(stats.token_gaps_ms))


def test_a_slow_reader_does_not_count_as_a_slow_engine(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    session, *_ = fake_session(folder)
    stream = session.stream(RED, "a?", max_tokens=4)
    for _ in stream:
        now[0] += 60
    assert stream.answer.stats.token_gaps_ms == (0, 0, 0)


def test_text_only_questions_need_no_image(folder: Path) -> None:
    session, vision, _ = fake_session(folder)
    stats = session.generate(None, "Hello?", max_tokens=1).stats
    assert (stats.image_tokens, stats.image_cached, vision.encoded) == (0, False, 0)


def test_sampling_repeats_with_a_seed(folder: Path) -> None:
    options = {"temperature": 100.0, "seed": 7, "max_tokens": 12}
    texts = {fake_session(folder)[0].generate(RED, "a?", **options).text for _ in range(2)}  # type: ignore[arg-type]
    assert len(texts) == 1
    assert fake_session(folder)[0].generate(RED, "a?", **{**options, "seed": 8}).text not in texts  # type: ignore[arg-type]


def test_close_frees_both_engines_and_refuses_more(folder: Path) -> None:
    session, vision, decoder = fake_session(folder)
    with session:
        pass
    session.close()
    assert vision.closed
    assert decoder.closed
    with pytest.raises(EdgeVLMError, match="closed"):
        session.generate(RED, "a?")


@pytest.mark.parametrize("arguments", [{"max_tokens": 0}, {"stop": [""]}, {"stop": "text"}, {"temperature": -1}])
def test_options_out_of_range_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        GenerationOptions(**arguments)


def _user(text: str) -> Message:
    return Message("user", text, images=1)


def test_logits_of_the_first_token_are_kept_if_asked_for(folder: Path, tokenizer: Tokenizer) -> None:
    session, *_ = scripted(folder, tokenizer, "It is 42.")
    answer = session.generate(RED, "What?", keep_logits=True)
    assert answer.first_logits is not None
    assert int(answer.first_logits.argmax()) == answer.token_ids[0]
    assert session.generate(RED, "What?").first_logits is None
