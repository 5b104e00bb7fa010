"""From a conversation to token ids, with a placeholder where an image goes.

In: messages and a `PromptSpec`. Out: ids in which `IMAGE_PLACEHOLDER` stands for all embeddings of one image. What a
user writes is text and nothing else: a special token or image marker typed by a user is tokenised letter by letter, so
it cannot end the turn, speak as another role or ask for an image. Without such text the ids are exactly those of the
published model.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from edgevlm.chat_template import compile_template
from edgevlm.errors import BundleError, InputError
from edgevlm.spec import PromptSpec
from edgevlm.tokenizer import Tokenizer

#: Where image embeddings go in a list of ids; the value LLaVA uses.
IMAGE_PLACEHOLDER = -200

# Two Unicode noncharacters, reserved for use inside a program, so that no text has a right to contain them.
_GUARD = "\ufdd0"
_REPLY = "\ufdd1"
_MAX_RENDERED_CHARS = 4 << 20
_HINT = "export the bundle again"


@dataclass(frozen=True)
class Message:
    """One turn: who speaks, what is said, and how many images come before it."""

    role: Literal["system", "user", "assistant"]
    text: str
    images: int = 0


class PromptFormatter:
    """Renders and tokenises the conversations of one model."""

    def __init__(self, spec: PromptSpec, tokenizer: Tokenizer) -> None:
        """Compile the template.

        Raises:
            BundleError: the template is malformed or uses something that is not allowed.
        """
        self._spec = spec
        self._tokenizer = tokenizer
        self._template = compile_template(spec.chat_template)

    def system_messages(self, system: str | None) -> list[Message]:
        """The system message: the given text, or the model's default for None; none where the text is empty."""
        text = self._spec.default_system if system is None else system
        return [Message("system", text)] if text else []

    def start(self, messages: Sequence[Message]) -> list[int]:
        """Ids of a conversation up to where the assistant's first answer begins.

        Raises:
            InputError: a user's message is empty.
            BundleError: the template fails, or loses an image.
        """
        ids = self._to_ids(self._render(messages), sum(message.images for message in messages))
        bos = self._spec.bos_token_id
        return ids if bos is None or ids[:1] == [bos] else [bos, *ids]

    def follow_up(self, messages: Sequence[Message]) -> list[int]:
        """Ids of what comes after the assistant's last answer in `messages`, up to its next one.

        The answers themselves are not rendered: their ids are already in the key/value cache.
        """
        last = max(index for index, message in enumerate(messages) if message.role == "assistant")
        rendered = self._render([_unsaid(message) for message in messages])
        _, separator, rest = rendered.rpartition(_REPLY)
        if not separator:
            raise BundleError("the chat template drops earlier answers", "chat_template", "ask in a new conversation")
        return self._to_ids(rest, sum(message.images for message in messages[last:]))

    def _render(self, messages: Sequence[Message]) -> str:
        if any(message.role == "user" and not message.text.strip() for message in messages):
            raise InputError("the prompt is empty", "prompt", "ask something about the image")
        images, most = sum(message.images for message in messages), self._spec.max_images
        if most and images > most:
            raise InputError(
                f"{images} images, but this model's template takes {most}", "image", "ask in a new conversation"
            )
        content = [{"role": message.role, "content": self._content(message)} for message in messages]
        pieces, length = [], 0
        try:
            for piece in self._template.generate(messages=content, add_generation_prompt=True):
                pieces.append(piece)
                length += len(piece)
                if length > _MAX_RENDERED_CHARS:
                    raise InputError("the rendered prompt is too long", "prompt", "shorten the prompt")
        except InputError:
            raise
        # A template may fail in any way that Python can.
        except Exception as error:
            reason = " ".join(str(error).split())[:120]
            raise BundleError(f"the chat template fails: {reason}", "chat_template", _HINT) from error
        return "".join(pieces)

    def _content(self, message: Message) -> str:
        if message.text == _REPLY:
            return _REPLY
        text = message.text.replace(_GUARD, "").replace(_REPLY, "")
        guarded = self._structure.sub(rf"\1{_GUARD}", text)
        if not message.images:
            return guarded
        return self._spec.image_text * message.images + self._spec.after_images + guarded

    @cached_property
    def _structure(self) -> re.Pattern[str]:
        """Matches the first character of each special token and image marker."""
        tokens = (*self._tokenizer.special_tokens, self._spec.image_marker)
        return re.compile(f"(?=(?:{'|'.join(map(re.escape, tokens))}))(.)", re.DOTALL)

    def _to_ids(self, text: str, images: int) -> list[int]:
        first, *others = text.split(self._spec.image_marker)
        if len(others) != images:
            raise BundleError("the chat template does not keep the image's place", "chat_template", _HINT)
        ids = self._encode(first)
        for piece in others:
            ids += [IMAGE_PLACEHOLDER, *self._encode(piece)]
        return ids

    def _encode(self, text: str) -> list[int]:
        """Ids of rendered text; where a guard shows that a user typed a special token, only the template's count."""
        if _GUARD not in text:
            return self._tokenizer.encode(text)
        ids: list[int] = []
        for index, piece in enumerate(re.split(f"({self._tokenizer.special_pattern()})", text)):
            is_special = index % 2 == 1
            ids += (
                self._tokenizer.encode(piece) if is_special else self._tokenizer.encode_plain(piece.replace(_GUARD, ""))
            )
        return ids


def _unsaid(message: Message) -> Message:
    return Message("assistant", _REPLY) if message.role == "assistant" else message
