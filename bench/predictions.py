"""Predictions on disk: JSON lines beside a report, and a cache of the uncompressed model's answers.

The answers of an uncompressed model do not change, so they are asked once for each (checkpoint, items, code version)
and kept in the user's cache folder. A line that does not fit means a damaged file, and the items are asked again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from edgevlm.atomic import write_text
from edgevlm.bench.job import Prediction
from edgevlm.bundle import sha256_file
from edgevlm.longrun import cache_folder

#: Folder of the answers, beside the report.
PREDICTIONS = "predictions"


def to_jsonl(predictions: Sequence[Prediction]) -> str:
    """One line an item; what has its default is left out."""
    lines = (p.model_dump(mode="json", exclude_defaults=True) for p in predictions)
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def read_jsonl(path: Path, n: int) -> list[Prediction] | None:
    """The `n` predictions in `path`, or None where there is no such file or it is damaged."""
    try:
        found = [Prediction.model_validate_json(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError, ValidationError):
        return None
    return found if len(found) == n else None


def cache_file(key: str) -> Path:
    """Where the answers of one uncompressed model are kept, by the hash over all that they depend on."""
    return cache_folder() / "predictions" / f"{key}.jsonl"


def file_name(name: str) -> str:
    """`name` of a row as a plain file name."""
    return "".join(char if char.isalnum() or char in "-_." else "_" for char in name).lstrip(".") or "row"


def store(path: Path, predictions: Sequence[Prediction]) -> str:
    """Write the lines atomically; return their SHA-256."""
    write_text(path, to_jsonl(predictions))
    return sha256_file(path)
