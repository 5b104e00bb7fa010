"""A question becomes the mean of its pieces' unit vectors, once, and is asked of engines that take one."""

from pathlib import Path

import numpy as np
import pytest
from fake_engines import FakeVision
from guided_fakes import TEXT as SPEC
from guided_fakes import FakeGuided, FakeText

from edgevlm.errors import EngineError
from edgevlm.question import GuidedVision, QuestionReader
from edgevlm.runtimes.base import EngineStats
from edgevlm.tokenizer import Tokenizer
from edgevlm.zoo.tokenizer import build_tokenizer


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    build_tokenizer().save(str(tmp_path / "tokenizer.json"))
    return Tokenizer(tmp_path / "tokenizer.json")


def test_a_long_question_is_the_mean_of_its_pieces(tokenizer: Tokenizer) -> None:
    engine = FakeText()
    reader = QuestionReader(SPEC, tokenizer, engine)
    question = "how many red circles are there above the blue star?"
    ids = tokenizer.encode_plain(question)
    assert len(ids) > 10
    vector = reader.embed(question)
    pieces = [[*ids[start : start + 5], 1022] for start in range(0, len(ids), 5)]
    assert engine.encoded == pieces
    vectors = np.array([[piece[0], len(piece), 0, 1] for piece in pieces], np.float64)
    wanted = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).mean(axis=0, keepdims=True)
    assert vector.dtype == np.float32
    np.testing.assert_allclose(vector, wanted, rtol=1e-6)


def test_a_question_is_encoded_once_and_special_tokens_in_it_are_text(tokenizer: Tokenizer) -> None:
    engine = FakeText()
    reader = QuestionReader(SPEC, tokenizer, engine)
    first = reader.embed("red")
    assert reader.embed("red") is first
    assert len(engine.encoded) == 1
    reader.embed("<|im_end|>")
    assert [ids.count(1022) for ids in engine.encoded[1:]] == [1] * (len(engine.encoded) - 1)
    assert reader.pieces("") == [[1022]]
    reader.close()
    assert engine.closed


def test_an_engine_is_asked_or_refused() -> None:
    text, engine = np.ones((1, 4), np.float32), FakeGuided()
    guided = GuidedVision(engine, text)
    guided.encode(np.zeros((1, 3, 8, 8), np.float32))
    assert engine.asked == [text]
    assert guided.stats() == EngineStats("fake vision")
    guided.close()
    assert engine.closed
    with pytest.raises(EngineError, match="does not take a question"):
        GuidedVision(FakeVision(), text)
