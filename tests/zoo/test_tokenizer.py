"""The zoo's tokenizer must be Qwen2's in everything but its vocabulary."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer, Qwen2Tokenizer

from edgevlm.zoo.synth import padded_tokenizer
from edgevlm.zoo.tokenizer import ROWS, SPECIAL_TOKENS, build_tokenizer, save_tokenizer

CORPUS = [
    "What colour is the square?",
    "\nIs the red circle left or right of the blue star?<|im_end|>\n<|im_start|>assistant\n",
    "472",
    "  two  spaces,\ttabs\r\nand\n\n\nlines   ",
    "Zürich, 東京, naïve, Ångström 🙂 e\u0301",
    "it's WE'LL they'd 3.14 + x_y == {z};",
    "<|endoftext|><image><|im_start|>",
    "",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(build_tokenizer(), path, 2048)
    return path


def test_ids_are_contiguous_and_special_tokens_come_last(folder: Path) -> None:
    vocabulary = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab()
    assert sorted(vocabulary.values()) == list(range(ROWS))
    assert [vocabulary[token] for token in SPECIAL_TOKENS] == list(range(ROWS - 4, ROWS))


def test_transformers_reads_it_as_qwen2_and_agrees(folder: Path) -> None:
    ours, theirs = Tokenizer.from_file(str(folder / "tokenizer.json")), AutoTokenizer.from_pretrained(folder)
    assert isinstance(theirs, Qwen2Tokenizer)
    for text in CORPUS:
        assert theirs(text)["input_ids"] == ours.encode(text).ids, text


def test_qwen2s_own_pipeline_on_our_vocabulary_gives_the_same_ids(folder: Path) -> None:
    """transformers builds Qwen2's normaliser, pre-tokenizer and decoder itself from vocabulary and merges."""
    content = json.loads((folder / "tokenizer.json").read_text())
    merges = [tuple(merge) for merge in content["model"]["merges"]]
    reference = Qwen2Tokenizer(vocab=content["model"]["vocab"], merges=merges)
    ours = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text in CORPUS:
        if not any(token in text for token in SPECIAL_TOKENS):
            ids = ours.encode(text).ids
            assert reference(text)["input_ids"] == ids, text
            assert reference.decode(ids) == ours.decode(ids)


def test_text_survives_the_round_trip(folder: Path) -> None:
    ours = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text in CORPUS[:-3]:
        decoded = ours.decode(ours.encode(text).ids, skip_special_tokens=False)
        assert decoded == ours.normalizer.normalize_str(text)


def test_template_writes_the_published_prompt(folder: Path) -> None:
    text = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        [{"role": "user", "content": "<image>\nWhat is it?"}], tokenize=False, add_generation_prompt=True
    )
    assert text == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n<image>\nWhat is it?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_answers_and_words_of_questions_are_single_tokens() -> None:
    tokenizer = build_tokenizer()
    for word in ("red", " red", "orange", " triangle", "star", "yes", "no", "left", "below", "7"):
        assert len(tokenizer.encode(word).ids) == 1, word


def test_building_it_twice_gives_the_same_file() -> None:
    assert build_tokenizer().to_str() == build_tokenizer().to_str()


def test_padded_tokenizer_has_qwen2s_special_ids_and_encodes_alike() -> None:
    small, padded = build_tokenizer(), padded_tokenizer(151643)
    assert [padded.token_to_id(token) for token in SPECIAL_TOKENS] == [151643, 151644, 151645, 151646]
    assert sorted(padded.get_vocab().values()) == list(range(151647))
    for text in CORPUS[:-2]:
        if "<" not in text:
            assert padded.encode(text).ids == small.encode(text).ids
