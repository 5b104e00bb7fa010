"""Llama's tokenizer (SentencePiece BPE with byte fallback, as a `tokenizer.json`) for llama.cpp.

llama.cpp joins the neighbours whose joined piece has the highest score, as SentencePiece does; a `tokenizer.json` lists
merges by rank instead. Both cut alike exactly where every way of splitting a piece is a merge and pieces follow one
another in rank, which is how merges are made from a SentencePiece model; anything else is refused. Behind a special
token llama.cpp adds a space to the text, as the published Llama tokenizers do (a `Prepend` normalizer, or Metaspace
with the scheme `always`); Metaspace's `first` does so at the start alone, and there the two differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gguf

from edgevlm.errors import UnsupportedError

SPACE = "\u2581"
_BYTES = {f"<0x{byte:02X}>" for byte in range(256)}
_HINT = "use the onnx format"


def is_sentencepiece(data: dict[str, Any]) -> bool:
    """Whether a `tokenizer.json` is SentencePiece's BPE: byte fallback, and spaces as U+2581."""
    return bool(data["model"].get("byte_fallback")) and _adds_space(data) is not None


def add_sentencepiece(
    writer: gguf.GGUFWriter, data: dict[str, Any], tokens: Sequence[str], types: Sequence[int], where: str
) -> None:
    """Write model, tokens, scores and types.

    Args:
        writer: of the file.
        data: the `tokenizer.json`, for which `is_sentencepiece` holds.
        tokens: text of each row.
        types: of each row, of `gguf.TokenType`; bytes and the unknown token are told here.
        where: the file, for messages.

    Raises:
        UnsupportedError: its merges are not those of a SentencePiece model, or bytes are missing.
    """
    model = data["model"]
    vocabulary: dict[str, int] = model["vocab"]
    if not vocabulary.keys() >= _BYTES:
        raise UnsupportedError("this tokenizer falls back to bytes that it does not have", where, _HINT)
    scores = _scores(model, {entry["content"] for entry in data.get("added_tokens") or []}, where)
    kinds = list(types)
    for row, token in enumerate(tokens):
        if token in _BYTES and vocabulary.get(token) == row:
            kinds[row] = gguf.TokenType.BYTE
        elif token == model.get("unk_token"):
            kinds[row] = gguf.TokenType.UNKNOWN
    writer.add_tokenizer_model("llama")
    writer.add_token_list(list(tokens))
    writer.add_token_scores([scores.get(token, 0.0) for token in tokens])
    writer.add_token_types([int(kind) for kind in kinds])
    writer.add_add_space_prefix(bool(_adds_space(data)))
    if model.get("unk_token") in vocabulary:
        writer.add_unk_token_id(vocabulary[model["unk_token"]])


def _merges(model: dict[str, Any]) -> list[tuple[str, str]]:
    """Pairs in order of rank; older files join them with a space."""
    pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model.get("merges", []))
    return [(first, second) for first, second in pairs]


def _scores(model: dict[str, Any], added: set[str], where: str) -> dict[str, float]:
    """Minus the place of each piece among the pieces that merges make."""
    vocabulary, merges = model["vocab"], _merges(model)
    made = [first + second for first, second in merges]
    order = list(dict.fromkeys(made))
    changes = sum(piece != before for piece, before in zip(made, [None, *made], strict=False))
    known = set(merges)
    splits = (
        (piece[:cut], piece[cut:])
        for piece in vocabulary
        if piece not in added and piece not in _BYTES
        for cut in range(1, len(piece))
    )
    complete = all(pair in known for pair in splits if pair[0] in vocabulary and pair[1] in vocabulary)
    if changes != len(order) or not complete or not all(piece in vocabulary for piece in order):
        raise UnsupportedError("llama.cpp would join pieces that this tokenizer does not", where, _HINT)
    return {piece: -float(rank) for rank, piece in enumerate(order)}


def _adds_space(data: dict[str, Any]) -> bool | None:
    """Whether a space is put before a text; None where spaces are not written as U+2581."""
    normalizer, cutter = data.get("normalizer") or {}, data.get("pre_tokenizer") or {}
    if cutter.get("type") == "Metaspace" and not normalizer:
        plain = cutter.get("replacement") == SPACE and not cutter.get("split", True)
        return cutter.get("prepend_scheme", "always") != "never" if plain else None
    steps = normalizer.get("normalizers", [normalizer]) if normalizer else []
    replaces = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    prepends = {"type": "Prepend", "prepend": SPACE}
    if cutter or replaces not in steps or any(step not in (replaces, prepends) for step in steps):
        return None
    return prepends in steps
