"""A Hugging Face `tokenizer.json` (byte-level BPE, or SentencePiece's with byte fallback) as GGUF metadata.

In: the files of a checkpoint's tokenizer and the number of embedding rows. Out: keys of a GGUF with which llama.cpp
cuts text exactly as `tokenizers` does, given text in the tokenizer's normal form (Qwen2's is NFC; llama.cpp does not
normalise). The pre-tokenizer is recognised by its regular expression, never by a model's name.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf

from edgevlm.errors import CheckpointError, UnsupportedError
from edgevlm.exporters.gguf.tokenizer_spm import add_sentencepiece, is_sentencepiece
from edgevlm.spec import PromptSpec

_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
#: llama.cpp's name of a pre-tokenizer, by the regular expressions that cut the text, in order.
PRE_TOKENIZERS: dict[tuple[str, ...], str] = {
    (_QWEN2,): "qwen2",
    (_QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|"),): "llama-bpe",
    ("ByteLevel",): "gpt-2",
    ("Digits", "ByteLevel"): "smollm",
}


def add_tokenizer(writer: gguf.GGUFWriter, files: dict[str, Path], prompt: PromptSpec, rows: int) -> None:
    """Write vocabulary, merges, special tokens and chat template.

    Args:
        files: the checkpoint's tokenizer files by name; `tokenizer.json` is needed, `tokenizer_config.json` used.
        prompt: stop tokens and template.
        rows: rows of the embedding; ids beyond the tokenizer become unused tokens.

    Raises:
        CheckpointError: no or broken tokenizer.json, or more tokens than rows.
        UnsupportedError: not a byte-level BPE that llama.cpp knows.
    """
    path = files.get("tokenizer.json")
    if path is None:
        raise CheckpointError(
            "the checkpoint has no tokenizer.json", "its tokenizer", "save the tokenizer in its fast form"
        )
    data = _read_json(path)
    try:
        model = data["model"]
        vocabulary: dict[str, int] = model["vocab"]
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model.get("merges", [])]
        added: list[dict[str, Any]] = data.get("added_tokens") or []
        kind = model.get("type", "BPE")
        sentencepiece = kind == "BPE" and is_sentencepiece(data)
        pre = None if sentencepiece else PRE_TOKENIZERS.get(_pre_tokenizer_key(data.get("pre_tokenizer")))
        if kind != "BPE" or (pre is None and not sentencepiece):
            raise UnsupportedError(
                f"llama.cpp is not known to cut text like this {kind} tokenizer", str(path), "use the onnx format"
            )
        tokens, types = _token_table(vocabulary, added, prompt.image_marker, rows, path)
        if sentencepiece:
            add_sentencepiece(writer, data, tokens, types, str(path))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(f"tokenizer.json is not understood: {error!r:.80}", str(path)) from error
    if pre is not None:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre)
        writer.add_token_list(tokens)
        writer.add_token_types(types)
        writer.add_token_merges(merges)
    writer.add_add_bos_token(prompt.bos_token_id is not None)
    writer.add_add_eos_token(False)
    if prompt.bos_token_id is not None:
        writer.add_bos_token_id(prompt.bos_token_id)
    if prompt.stop_token_ids:
        writer.add_eos_token_id(prompt.stop_token_ids[0])
    pad = _pad_token_id(files.get("tokenizer_config.json"), tokens)
    if pad is not None:
        writer.add_pad_token_id(pad)
    writer.add_chat_template(prompt.chat_template)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path.name} cannot be read: {error!s:.80}", str(path)) from error


def _pre_tokenizer_key(pre_tokenizer: Any) -> tuple[str, ...]:
    """The cutting rules of a `pre_tokenizer` entry.

    `ByteLevel` stands for its built-in GPT-2 expression, `Digits` for each digit on its own.
    """
    if not pre_tokenizer:
        return ()
    steps = pre_tokenizer["pretokenizers"] if pre_tokenizer["type"] == "Sequence" else [pre_tokenizer]
    key = []
    for step in steps:
        if step["type"] == "Split":
            key.append(step["pattern"].get("Regex", "") if step["behavior"] == "Isolated" else "")
        elif step["type"] == "Digits":
            key.append("Digits" if step["individual_digits"] else "")
        elif step["type"] != "ByteLevel" or step.get("add_prefix_space", True):
            key.append("")
        elif step.get("use_regex", True):
            key.append("ByteLevel")
    return tuple(key)


def _token_table(
    vocabulary: dict[str, int], added: list[dict[str, Any]], image_marker: str, rows: int, path: Path
) -> tuple[list[str], list[int]]:
    """Text and type of every row; rows without a token are unused."""
    tokens = [f"[PAD{row}]" for row in range(rows)]
    types = [int(gguf.TokenType.UNUSED)] * rows
    entries = [(text, row, gguf.TokenType.NORMAL) for text, row in vocabulary.items()]
    entries += [
        (entry["content"], entry["id"], gguf.TokenType.CONTROL if entry["special"] else gguf.TokenType.USER_DEFINED)
        for entry in added
    ]
    for text, row, kind in entries:
        if row >= rows and text == image_marker:
            continue  # stands for image embeddings, which never pass through the embedding table
        if not 0 <= row < rows:
            raise CheckpointError(
                f"token {text!r:.40} has id {row}, the embedding has {rows} rows",
                str(path),
                "use the tokenizer that belongs to these weights",
            )
        tokens[row], types[row] = text, int(kind)
    return tokens, types


def _pad_token_id(config: Path | None, tokens: list[str]) -> int | None:
    if config is None:
        return None
    pad = _read_json(config).get("pad_token")
    text = pad.get("content") if isinstance(pad, dict) else pad
    return tokens.index(text) if text in tokens else None
