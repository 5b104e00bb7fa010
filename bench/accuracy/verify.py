"""Checks a downloaded data set: is it whole, is it the published one, does every picture open?

In: a set, its folder and a split. Out: findings, each with what was found and what was expected. Nothing is written.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgevlm.bench.accuracy.items import Picture, Record, Skipped
from edgevlm.bench.accuracy.reading import Folder, digest
from edgevlm.bench.accuracy.sets.base import DataSet
from edgevlm.errors import InputError

_NAMED = 5
#: Characters that are shown of a name.
_NAME = 80


@dataclass(frozen=True)
class Finding:
    """One check: what was found, what was expected (empty where nothing is published), and whether it is as it should.

    Attributes:
        good: None where there is nothing to compare with.
    """

    check: str
    found: str
    expected: str = ""
    good: bool | None = None


def verify(known: DataSet, folder: Folder, split: str, progress: Callable[[float, float, str], None]) -> list[Finding]:
    """Read the set as a benchmark would, and open every picture.

    Args:
        known: the set.
        folder: where it lies.
        split: of the set.
        progress: called with pictures opened, pictures in all, and what is done.

    Raises:
        InputError: a file is missing or cannot be read at all.
    """
    entries = known.read(folder, split)
    asked = [entry for entry in entries if isinstance(entry, Record)]
    skipped = [entry for entry in entries if isinstance(entry, Skipped)]
    published = known.counts.get(split)
    return [
        Finding(
            "questions",
            f"{len(asked):,}",
            f"{published:,}" if published else "",
            None if published is None else len(asked) == published,
        ),
        Finding("rows that cannot be used", _named(skipped), "0", not skipped),
        *(_hash(known, path) for path in folder.used),
        _pictures(asked, progress),
    ]


def _hash(known: DataSet, path: Path) -> Finding:
    expected = known.md5.get(path.name, "")
    found = digest(path, "md5")
    return Finding(f"MD5 of {path.name}", found, expected, found == expected if expected else None)


def _pictures(records: list[Record], progress: Callable[[float, float, str], None]) -> Finding:
    # Pictures of MME have the same names in several folders.
    pictures: dict[tuple[str, str], Picture] = {
        (record.image_id, picture.name): picture for record in records for picture in record.pictures
    }
    bad = []
    for number, picture in enumerate(pictures.values()):
        progress(number, len(pictures), picture.name)
        try:
            picture.open()
        except InputError as error:
            bad.append(Skipped(picture.name, error.what))
    found = f"{len(pictures) - len(bad):,} open" + (f", {_named(bad)} do not" if bad else "")
    return Finding("pictures", found, f"{len(pictures):,}", not bad)


def _named(entries: list[Skipped]) -> str:
    """How many, and the first few with their reasons."""
    shown = "; ".join(f"{_shortened(entry.id)}: {entry.reason}" for entry in entries[:_NAMED])
    more = " ..." if len(entries) > _NAMED else ""
    return f"{len(entries):,} ({shown}{more})" if entries else "0"


def _shortened(name: str) -> str:
    return name if len(name) <= _NAME else name[: _NAME - 3] + "..."
