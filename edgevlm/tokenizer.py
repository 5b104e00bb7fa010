"""Text to token ids and back: a thin wrapper over the `tokenizers` library, and streaming detokenisation.

In: a bundle's `tokenizer.json`. `encode` recognises special tokens in the text, as published; `encode_plain` takes
every character literally, for text that comes from a user. A detokenizer turns ids into text one at a time, never
splits a UTF-8 character, and its pieces joined equal the full decode.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from edgevlm.errors import BundleError

_REPLACEMENT = "\ufffd"
_NEVER = "(?!)"


class Tokenizer:
    """One tokenizer. Not safe to share between threads."""

    def __init__(self, path: Path) -> None:
        """Read `tokenizer.json`.

        Raises:
            BundleError: it is missing or cannot be read.
        """
        from tokenizers import Tokenizer as Backend

        try:
            self._backend: Any = Backend.from_file(str(path))
        # The library raises bare Exception whatever is wrong with the file.
        except Exception as error:
            reason = " ".join(str(error).split())[:120]
            raise BundleError(
                f"the tokenizer cannot be read: {reason}", str(path), "export the bundle again"
            ) from error
        self._backend.no_padding()
        self._backend.no_truncation()
        self._special = {
            token_id: token for token_id, token in self._backend.get_added_tokens_decoder().items() if token.special
        }
        self._byte_level = type(self._backend.decoder).__name__ == "ByteLevel"
        self._bytes: dict[int, bytes] = {}

    @property
    def special_tokens(self) -> dict[str, int]:
        """Text to id of each special token."""
        return {token.content: token_id for token_id, token in self._special.items()}

    def special_pattern(self) -> str:
        """A regular expression that matches one special token, with the white space that it swallows."""
        longest_first = sorted(self._special.values(), key=lambda token: -len(token.content))
        return (
            "|".join(
                (r"\s*" if token.lstrip else "") + re.escape(token.content) + (r"\s*" if token.rstrip else "")
                for token in longest_first
            )
            or _NEVER
        )

    def encode(self, text: str) -> list[int]:
        """Ids of `text`; special tokens in it are recognised, none are added."""
        return list(self._backend.encode(text, add_special_tokens=False).ids)

    def encode_plain(self, text: str) -> list[int]:
        """Ids of `text`, of which every character is text: no special token is recognised."""
        self._backend.encode_special_tokens = True
        try:
            return self.encode(text)
        finally:
            self._backend.encode_special_tokens = False

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids` without special tokens."""
        return str(self._backend.decode(list(ids), skip_special_tokens=True))

    def detokenizer(self) -> ByteDetokenizer | WindowDetokenizer:
        """A fresh streaming decoder."""
        return ByteDetokenizer(self) if self._byte_level else WindowDetokenizer(self)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a byte-level token stands for; none for special and unknown tokens."""
        cached = self._bytes.get(token_id)
        if cached is None:
            token = None if token_id in self._special else self._backend.id_to_token(token_id)
            cached = self._bytes[token_id] = b"" if token is None else _from_byte_alphabet(token)
        return cached


class ByteDetokenizer:
    """Streaming decoder for byte-level BPE: bytes are collected until they make a character."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        # Both this decoder and the library replace each maximal ill-formed part by one U+FFFD (Unicode 3.9, table 3-8).
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token_id: int) -> str:
        """The text that becomes certain with this token; may be empty."""
        return self._decoder.decode(self._tokenizer.token_bytes(token_id))

    def finish(self) -> str:
        """What was held back: the replacement character of an unfinished character, or nothing."""
        return self._decoder.decode(b"", final=True)


class WindowDetokenizer:
    """Streaming decoder for any other tokenizer: decodes a short window of ids before and after each new one.

    The window starts at the previous piece, so that decoders which treat the first token apart see a neighbour.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = []
        self._emitted_ids = 0
        self._emitted_text = ""

    def add(self, token_id: int) -> str:
        """The text that becomes certain with this token; may be empty."""
        self._window.append(token_id)
        text = self._tokenizer.decode(self._window)
        if text.endswith(_REPLACEMENT):
            return ""
        return self._emit(text)

    def finish(self) -> str:
        """What was held back."""
        return self._emit(self._tokenizer.decode(self._window))

    def _emit(self, text: str) -> str:
        piece = text[len(self._emitted_text) :]
        if piece:
            self._window = self._window[self._emitted_ids :]
            self._emitted_ids = len(self._window)
            self._emitted_text = self._tokenizer.decode(self._window)
        return piece


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's reversible map of characters to bytes: printable Latin-1 stands for itself, the rest from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in printable}
    others: Iterable[int] = (byte for byte in range(256) if byte not in set(printable))
    alphabet.update({chr(0x100 + index): byte for index, byte in enumerate(others)})
    return alphabet


_BYTES = _byte_alphabet()


def _from_byte_alphabet(token: str) -> bytes:
    """Bytes of one token; a token with a character outside the alphabet (an added token) is its own UTF-8."""
    try:
        return bytes(_BYTES[char] for char in token)
    except KeyError:
        return token.encode("utf-8")
