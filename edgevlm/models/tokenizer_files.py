"""What a loader must know of the tokenizer beside a checkpoint: its files, special ids, and the weights' licence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgevlm.errors import CheckpointError
from edgevlm.models.checkpoint import read_json

_SLOW_FILES = ("tokenizer.model", "vocab.json")
_FILES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")


@dataclass(frozen=True)
class TokenizerFacts:
    """Ids by token text for the added tokens, the number of ids in use, and the files to copy."""

    files: dict[str, Path]
    added: dict[str, int]
    size: int
    generation_stops: tuple[int, ...]
    licence: str

    def image_token_id(self, configured: int | None, where: str) -> int:
        """The id of an image embedding: the tokenizer's `<image>`, else the configured one, else the next free.

        Raises:
            CheckpointError: the tokenizer and `config.json` disagree. Below zero is a mark of the code, not an id.
        """
        if configured is not None and configured < 0:
            configured = None
        found = self.added.get("<image>")
        if found is None:
            return self.size if configured is None else configured
        if configured not in (None, found):
            raise CheckpointError(
                f"image_token_index is {configured}, but <image> is token {found} of tokenizer.json",
                where,
                "give the tokenizer that belongs to this checkpoint",
            )
        return found

    def stop_ids(self, tokens: tuple[str, ...], configured: Sequence[int | None]) -> tuple[int, ...]:
        """Ids that end an answer: of the given token texts, the generation config's and the config's, sorted."""
        named = {self.added[token] for token in tokens if token in self.added}
        return tuple(sorted(named | set(self.generation_stops) | {i for i in configured if i is not None}))


def tokenizer_facts(folder: Path) -> TokenizerFacts:
    """Read `tokenizer.json` and what stands beside it.

    Raises:
        CheckpointError: there is no tokenizer.json, or it is not one.
    """
    slow = [name for name in _SLOW_FILES if (folder / name).is_file()]
    if slow and not (folder / "tokenizer.json").is_file():
        raise CheckpointError(
            f"the tokenizer is here as {slow[0]} alone, without tokenizer.json",
            str(folder),
            "save its fast form beside it: transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(folder)",
        )
    data = read_json(folder / "tokenizer.json")
    try:
        added = {str(entry["content"]): int(entry["id"]) for entry in data.get("added_tokens", [])}
        vocabulary = data["model"]["vocab"]
        ids = vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
        size = max([*map(int, ids), *added.values()]) + 1
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            "tokenizer.json is not a tokenizers file", str(folder / "tokenizer.json"), "download it again"
        ) from error
    generation = folder / "generation_config.json"
    stops = read_json(generation).get("eos_token_id") if generation.is_file() else None
    stops = stops if isinstance(stops, list) else [stops]
    return TokenizerFacts(
        files={name: folder / name for name in _FILES if (folder / name).is_file()},
        added=added,
        size=size,
        generation_stops=tuple(stop for stop in stops if isinstance(stop, int)),
        licence=read_licence(folder),
    )


def read_licence(folder: Path) -> str:
    """The `license:` line of the model card, if there is one."""
    card = folder / "README.md"
    if card.is_file():
        for line in card.read_text(encoding="utf-8", errors="replace").splitlines()[:40]:
            key, _, value = line.partition(":")
            if key.strip().lower() in ("license", "licence") and value.strip():
                return value.strip()
    return "unknown"
