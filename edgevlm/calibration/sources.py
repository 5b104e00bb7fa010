"""Where calibration samples come from: the set `scenes`, a folder of images, or a file of conversations.

In: what the user gave as `--calibrate`, and how many samples. Out: a `Calibration`. A file is JSON Lines of `image`,
`prompt` and perhaps `answer`, or in LLaVA's form (`image`, `conversations`), as lines or as one JSON array; images lie
in its folder or below, and entries without an image are passed over. What cannot be read is left out and named. Which
samples are taken of more than enough is drawn with the seed; they keep their order.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm.calibration import DEFAULT_MEMORY, Calibration, Sample
from edgevlm.errors import InputError
from edgevlm.imageio import load_image
from edgevlm.zoo.scenes import scenes

SCENES = "scenes"
#: For images without questions: what people ask of a picture, in turn.
PROMPTS = (
    "Describe the image.",
    "What is in the picture?",
    "What text can be read in the image?",
    "How many objects are there, and what colours do they have?",
)
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")
_HINT = "give a folder of images, a .jsonl file, or scenes"


@dataclass(frozen=True)
class _Entry:
    """A sample whose image has not been read; `name` is the image's as the user wrote it."""

    path: Path
    name: str
    prompt: str
    answer: str = ""


def open_calibration(source: str, count: int, *, seed: int = 0, memory: int = DEFAULT_MEMORY) -> Calibration:
    """Find at most `count` samples.

    Args:
        source: `scenes`, a folder, or a `.jsonl` or `.json` file.
        count: how many; fewer where there are no more.
        seed: of the choice among more than `count`, and of `scenes`.
        memory: bytes that passes may hold in memory.

    Raises:
        InputError: there is nothing at `source`, it holds no image that can be read, or an entry is malformed.
    """
    if count <= 0:
        raise InputError(f"{count} calibration samples", "calibration", "give at least 1")
    if source == SCENES:
        return Calibration(lambda: _scenes(count, seed), count, source, memory=memory)
    path = Path(source)
    if path.is_dir():
        entries = _folder(path)
    elif path.is_file() and path.suffix in (".jsonl", ".json"):
        entries = _file(path)
    elif path.exists():
        raise InputError(f"calibration data cannot be a {path.suffix or 'special'} file", source, _HINT)
    else:
        raise InputError("there is no calibration data", source, _HINT)
    chosen, skipped = _readable(entries, count, seed)
    if not chosen:
        first = f": {skipped[0]}" if skipped else ""
        raise InputError(f"there is no calibration image that can be read{first}", source, _HINT)
    return Calibration(lambda: map(_load, chosen), len(chosen), source, tuple(skipped), memory)


def _scenes(count: int, seed: int) -> Iterator[Sample]:
    for item in scenes("calibration", count, seed):
        yield Sample(item.image, item.question, item.answer)


def _folder(folder: Path) -> list[_Entry]:
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES and path.is_file())
    names = [path.relative_to(folder).as_posix() for path in paths]
    return [
        _Entry(path, name, PROMPTS[index % len(PROMPTS)])
        for index, (path, name) in enumerate(zip(paths, names, strict=True))
    ]


def _file(file: Path) -> list[_Entry]:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the calibration file cannot be read: {error}", str(file), _HINT) from error
    if text.lstrip().startswith("["):
        items = [(f"{file}, entry {index + 1}", item) for index, item in enumerate(_json(text, str(file)))]
    else:
        lines = [(f"{file}, line {number}", line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
        items = [(where, _json(line, where)) for where, line in lines]
    found = (_entry(item, file.parent, where) for where, item in items)
    return [entry for entry in found if entry is not None]


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"this is not JSON: {error}", where, "see docs/weight-pruning.md for the form") from error


def _entry(item: Any, folder: Path, where: str) -> _Entry | None:
    """One entry of a file; None for one without an image."""
    hint = "write image, prompt and perhaps answer, or image and conversations"
    if not isinstance(item, dict):
        raise InputError("a calibration entry is not a mapping", where, hint)
    if item.get("image") is None:
        return None
    prompt, answer = item.get("prompt"), item.get("answer", "")
    turns = item.get("conversations")
    if isinstance(turns, list) and all(isinstance(turn, dict) for turn in turns):
        said = {speaker: [turn.get("value") for turn in turns if turn.get("from") == speaker] for speaker in _SPEAKERS}
        prompt, answer = (next(iter(said[speaker]), "") for speaker in _SPEAKERS)
    name = item["image"]
    if not (isinstance(name, str) and isinstance(prompt, str) and isinstance(answer, str)):
        raise InputError("a calibration entry has no image, no prompt, or no text in them", where, hint)
    prompt = prompt.replace("<image>", "").strip()
    if not prompt:
        raise InputError("a calibration entry asks nothing", where, hint)
    root, path = folder.resolve(), (folder / name).resolve()
    if not path.is_relative_to(root):
        raise InputError(f"image {name!r:.80} lies outside the file's folder", where, "move the images below the file")
    return _Entry(path, name, prompt, answer)


_SPEAKERS = ("human", "gpt")


def _readable(entries: list[_Entry], count: int, seed: int) -> tuple[list[_Entry], list[str]]:
    """At most `count` entries whose images can be read, in order, and what is wrong with those that cannot."""
    chosen: list[int] = []
    skipped: list[tuple[int, str]] = []
    state: dict[Path, str] = {}
    for index in map(int, np.random.default_rng(seed).permutation(len(entries))):
        if len(chosen) == count:
            break
        entry = entries[index]
        if entry.path not in state:
            state[entry.path] = _problem(entry)
        if state[entry.path]:
            skipped.append((index, f"{entry.name} ({state[entry.path]})"))
        else:
            chosen.append(index)
    return [entries[index] for index in sorted(chosen)], list(dict.fromkeys(text for _, text in sorted(skipped)))


def _problem(entry: _Entry) -> str:
    try:
        load_image(entry.path)
    except InputError as error:
        return error.what
    return ""


def _load(entry: _Entry) -> Sample:
    pixels: NDArray[np.uint8] = np.asarray(load_image(entry.path))
    return Sample(pixels, entry.prompt, entry.answer)
