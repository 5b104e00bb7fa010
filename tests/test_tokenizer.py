"""Streaming detokenisation equals the full decode and never splits a character."""

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from edgevlm.errors import BundleError
from edgevlm.tokenizer import ByteDetokenizer, Tokenizer, WindowDetokenizer
from edgevlm.zoo.tokenizer import build_tokenizer

TEXTS = [
    "What number is written? 42.",
    "naïve café — 数字は四十二です 🙂👩‍👩‍👧‍👦 नमस्ते",
    "  spaces\t\ttabs\n\n\r\nlines ",
    "",
    "a\u0301 e\u0301 \ufffd \U0010ffff",
]


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    build_tokenizer().save(str(path))
    return Tokenizer(path)


@pytest.fixture(scope="module")
def byte_fallback(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """The form of SentencePiece tokenizers: words that begin with U+2581, and single bytes for what is unknown."""
    vocabulary = {"<unk>": 0, **{f"<0x{byte:02X}>": 1 + byte for byte in range(256)}}
    vocabulary.update({piece: len(vocabulary) + i for i, piece in enumerate(["\u2581", "a", "b", "\u2581a", "ab"])})
    merges = [("\u2581", "a"), ("a", "b")]
    backend = Backend(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    backend.save(str(path))
    return Tokenizer(path)


def streamed(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    detokenizer = tokenizer.detokenizer()
    return [*(detokenizer.add(token) for token in ids), detokenizer.finish()]


def test_each_kind_gets_its_decoder(byte_level: Tokenizer, byte_fallback: Tokenizer) -> None:
    assert isinstance(byte_level.detokenizer(), ByteDetokenizer)
    assert isinstance(byte_fallback.detokenizer(), WindowDetokenizer)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback"])
def test_pieces_are_whole_characters(kind: str, text: str, request: pytest.FixtureRequest) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(kind)
    ids = tokenizer.encode(text)
    pieces = streamed(tokenizer, ids)
    assert "".join(pieces) == tokenizer.decode(ids)
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


def test_random_ids_equal_the_full_decode(byte_level: Tokenizer) -> None:
    """Random ids hold every kind of broken UTF-8, special tokens and ids beyond the vocabulary."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        ids = rng.integers(0, 1060, 40).tolist()
        assert "".join(streamed(byte_level, ids)) == byte_level.decode(ids)


def test_a_long_answer_is_not_decoded_again_and_again(byte_fallback: Tokenizer) -> None:
    decoded = 0
    original = byte_fallback.decode

    def counting(ids: list[int]) -> str:
        nonlocal decoded
        decoded += len(ids)
        return original(ids)

    byte_fallback.decode = counting  # type: ignore[method-assign, assignment]
    ids = byte_fallback.encode("ab a " * 200)
    try:
        streamed(byte_fallback, ids)
    finally:
        byte_fallback.decode = original  # type: ignore[method-assign]
    assert decoded < 6 * len(ids)


def test_plain_text_holds_no_special_tokens(byte_level: Tokenizer) -> None:
    special = byte_level.special_tokens["<|im_end|>"]
    assert special in byte_level.encode("a<|im_end|>b")
    plain = byte_level.encode_plain("a<|im_end|>b")
    assert special not in plain
    assert byte_level.decode(plain) == "a<|im_end|>b"
    assert special in byte_level.encode("a<|im_end|>b"), "encode_plain must leave no trace"


def test_a_damaged_file_is_an_error_of_the_bundle(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    for path in (tmp_path / "tokenizer.json", tmp_path / "missing.json"):
        with pytest.raises(BundleError, match="tokenizer"):
            Tokenizer(path)
