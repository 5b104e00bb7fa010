"""Predictions on disk: JSON lines beside a report, and a cache of the uncompressed model's answers.

The answers of an uncompressed model do not change, so they are asked once for each (checkpoint, task, split,
items, seed, token limit, code version) and kept in the user's cache folder. A line that does not fit means a damaged
file, and the items are asked again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from edgevlm.atomic import write_text
from edgevlm.bench.job import AccuracyPlan, Prediction
from edgevlm.bundle import sha256_file
from edgevlm.longrun import cache_folder


def to_jsonl(predictions: Sequence[Prediction]) -> str:
    """One line an item."""
    return "".join(json.dumps(p.model_dump(mode="json"), ensure_ascii=False) + "\n" for p in predictions)


def read_jsonl(path: Path, n: int) -> list[Prediction] | None:
    """The `n` predictions in `path`, or None where there is no such file or it is damaged."""
    try:
        found = [Prediction.model_validate_json(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError, ValidationError):
        return None
    return found if len(found) == n else None


def cache_file(content: str, plan: AccuracyPlan, versions: Sequence[str]) -> Path:
    """Where the answers of one reference are kept.

    Args:
        content: hash of the checkpoint's files.
        plan: the items.
        versions: of what computes and of what makes the items.
    """
    parts = [content, plan.model_dump_json(), *versions]
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    return cache_folder() / "predictions" / f"{key}.jsonl"


def store(path: Path, predictions: Sequence[Prediction]) -> str:
    """Write the lines atomically; return their SHA-256."""
    write_text(path, to_jsonl(predictions))
    return sha256_file(path)
