"""A `tokenizer.json` with fewer tokens that cuts the text it was made for as before.

In: the file's content (BPE, byte-level or with byte fallback) and the ids that occur. Out: the content without the
other tokens, ids renumbered in order, and the old id of each new one. What stays: the ids seen, every piece that is
merged on the way to them, single bytes (so that any text can be written), and added tokens. Merges stay where all three
of their pieces do; since a text that ends in kept tokens went through kept merges alone, it is cut as before.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from edgevlm.errors import UnsupportedError

_HINT = "leave vocab out of the recipe"


@dataclass(frozen=True)
class Trimmed:
    """A smaller tokenizer.

    Attributes:
        data: the content of its `tokenizer.json`.
        old_ids: for each new id the id it had, ascending.
    """

    data: dict[str, Any]
    old_ids: list[int]

    @property
    def new_ids(self) -> dict[int, int]:
        """New id by old id."""
        return {old: new for new, old in enumerate(self.old_ids)}


def trim(data: Mapping[str, Any], seen: Iterable[int], where: str) -> Trimmed:
    """Leave out all tokens but those that `seen` needs.

    Args:
        data: the content of `tokenizer.json`.
        seen: ids that occur in the text that must be cut as before.
        where: the file, for messages.

    Raises:
        UnsupportedError: the tokenizer is no BPE of the usual kind.
    """
    model = data["model"]
    if model.get("type", "BPE") != "BPE" or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise UnsupportedError(f"a {model.get('type')} vocabulary cannot be trimmed, only a BPE", where, _HINT)
    vocabulary: dict[str, int] = model["vocab"]
    pieces = {token_id: piece for piece, token_id in vocabulary.items()}
    pairs = [_pair(merge) for merge in model.get("merges", [])]
    ranks = {pair: rank for rank, pair in reversed(list(enumerate(pairs)))}
    added = {entry["id"] for entry in data.get("added_tokens") or []}
    kept = _always(model, vocabulary)
    for token_id in set(seen) & pieces.keys():
        kept |= _ancestry(pieces[token_id], vocabulary, ranks)
    old_ids = sorted({vocabulary[piece] for piece in kept} | added)
    new_ids = {old: new for new, old in enumerate(old_ids)}
    smaller = {piece: new_ids[old] for piece, old in vocabulary.items() if old in new_ids}
    kept_merges = [
        merge
        for merge, (first, second) in zip(model.get("merges", []), pairs, strict=True)
        if first in smaller and second in smaller and first + second in smaller
    ]
    content = {
        **data,
        "model": {**model, "vocab": dict(sorted(smaller.items(), key=lambda item: item[1])), "merges": kept_merges},
        "added_tokens": [{**entry, "id": new_ids[entry["id"]]} for entry in data.get("added_tokens") or []],
        "post_processor": _renumbered(data.get("post_processor"), new_ids),
    }
    return Trimmed(content, old_ids)


def _pair(merge: Any) -> tuple[str, str]:
    first, second = merge.split(" ") if isinstance(merge, str) else merge
    return first, second


def _always(model: Mapping[str, Any], vocabulary: Mapping[str, int]) -> set[str]:
    """Pieces with which any text can be written: the bytes, or without byte fallback all single characters."""
    if model.get("byte_fallback"):
        basic = {f"<0x{byte:02X}>" for byte in range(256)}
    else:
        basic = {piece for piece in vocabulary if len(piece) == 1}
    return {piece for piece in (*basic, str(model.get("unk_token"))) if piece in vocabulary}


def _ancestry(piece: str, vocabulary: Mapping[str, int], ranks: Mapping[tuple[str, str], int]) -> set[str]:
    """The piece and all that is merged on the way to it, from its characters on."""
    symbols, found = list(piece), {piece}
    while True:
        found |= {symbol for symbol in symbols if symbol in vocabulary}
        neighbours = [(ranks[pair], at) for at, pair in enumerate(pairwise(symbols)) if pair in ranks]
        if not neighbours:
            return found
        _, at = min(neighbours)
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]


def _renumbered(value: Any, new_ids: Mapping[int, int]) -> Any:
    """A post-processor with new ids: templates name them in `ids`, BERT's and RoBERTa's in pairs of text and id."""
    if isinstance(value, list):
        return [_renumbered(item, new_ids) for item in value]
    if not isinstance(value, dict):
        return value
    changed = {}
    for key, item in value.items():
        if key == "ids" and isinstance(item, list):
            changed[key] = [new_ids[token_id] for token_id in item]
        elif key in ("sep", "cls") and isinstance(item, list) and len(item) == 2:
            changed[key] = [item[0], new_ids[item[1]]]
        else:
            changed[key] = _renumbered(item, new_ids)
    return changed
