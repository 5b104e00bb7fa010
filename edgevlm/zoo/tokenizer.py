"""The tokenizer of the zoo's own models: a byte-level BPE of 1024 rows in the form of Qwen2's `tokenizer.json`.

In: `data/english.txt` and the questions and answers of `scenes`. Out: `tokenizer.json`, `tokenizer_config.json` with
the ChatML template of FastVLM's prompt. Pre-tokenization, normalisation and decoding are exactly Qwen2's, so
transformers, llama.cpp (`pre` = qwen2) and transformers.js all cut text alike.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from edgevlm.atomic import write_text
from edgevlm.errors import InputError
from edgevlm.models.fastvlm import CHAT_TEMPLATE
from edgevlm.zoo.drawing import COLOURS, SHAPES

ROWS = 1024
IMAGE_TOKEN = "<image>"
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", IMAGE_TOKEN)
SYSTEM_PROMPT = "You are a helpful assistant."

QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_ENGLISH = Path(__file__).parent / "data" / "english.txt"


def build_tokenizer(rows: int = ROWS) -> Tokenizer:
    """Train the tokenizer; ids are contiguous, the four special tokens are the last rows. Deterministic."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=rows - len(SPECIAL_TOKENS),
        min_frequency=1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL_TOKENS])
    return tokenizer


def token_id(tokenizer: Tokenizer, token: str) -> int:
    """The id of a token that the tokenizer is known to have."""
    found = tokenizer.token_to_id(token)
    if found is None:
        raise InputError(f"the tokenizer has no token {token!r}", "zoo tokenizer", "train the model again")
    return int(found)


def save_tokenizer(tokenizer: Tokenizer, folder: Path, max_length: int) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json` as Qwen2 checkpoints have them."""
    write_text(folder / "tokenizer.json", tokenizer.to_str(pretty=True))
    added = {
        str(tokenizer.token_to_id(token)): {
            "content": token,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
        for token in SPECIAL_TOKENS
    }
    config = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        "additional_special_tokens": list(SPECIAL_TOKENS[1:]),
        "bos_token": None,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": max_length,
        "pad_token": "<|endoftext|>",
        "padding_side": "right",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    write_text(folder / "tokenizer_config.json", json.dumps(config, indent=2, ensure_ascii=False) + "\n")


def _corpus() -> Iterator[str]:
    """Every word of the questions and answers often enough to become one token, then general English."""
    relations = ("left or right of", "above or below")
    words = (*COLOURS, *SHAPES, "yes", "no", "left", "right", "above", "below")
    for _ in range(20):
        yield from words
        yield from (f" {word}" for word in words)
        yield f"system\n{SYSTEM_PROMPT}"
        yield from ("user\n", "assistant\n", "How many shapes are there?", "What number is written?")
    for colour in COLOURS:
        for shape in SHAPES:
            yield f"What colour is the {shape}?"
            yield f"What shape is the {colour} object?"
            yield f"Is there a {colour} {shape}? Is there an {colour} {shape}?"
            yield from (f"Is the {colour} {shape} {relation} the {colour} {shape}?" for relation in relations)
    yield from _ENGLISH.read_text(encoding="utf-8").splitlines(keepends=True)
