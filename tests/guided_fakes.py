"""Engines without a runtime for models whose image tokens are chosen by the question."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from fake_engines import SPEC, TOKENS, FakeDecoder, FakeVision, fake_session

from edgevlm.question import QuestionReader
from edgevlm.runtimes.base import Float32, Int32
from edgevlm.session import Session
from edgevlm.spec import ReducerSpec, TextTowerSpec
from edgevlm.tokenizer import Tokenizer

TEXT = TextTowerSpec(1024, 8, 8, 1, 1, max_position_embeddings=6, projection_size=4, end_token_id=1022)


class FakeText:
    """A vector of the first id and the length."""

    def __init__(self) -> None:
        self.encoded: list[list[int]] = []
        self.closed = False

    def encode(self, ids: Int32) -> Float32:
        self.encoded.append(ids.tolist())
        return np.array([ids[0], len(ids), 0, 1], np.float32)

    def close(self) -> None:
        self.closed = True


class FakeGuided(FakeVision):
    """Notes the questions."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Float32] = []

    def encode_guided(self, pixels: Float32, text: Float32) -> Float32:
        self.asked.append(text)
        shifted: Float32 = self.encode(pixels) + text.sum()
        return shifted


def guided_session(folder: Path) -> tuple[Session, FakeGuided, FakeText, FakeDecoder]:
    """A session whose image embeddings depend on the question."""
    fake_session(folder)
    tokenizer = Tokenizer(folder / "tokenizer.json")
    spec = replace(SPEC, vision=replace(SPEC.vision, reducer=ReducerSpec("cdpruner", TOKENS, text=TEXT)))
    vision, text, decoder = FakeGuided(), FakeText(), FakeDecoder()
    questions = QuestionReader(TEXT, tokenizer, text)
    return Session(spec, tokenizer, vision, decoder, questions=questions), vision, text, decoder
