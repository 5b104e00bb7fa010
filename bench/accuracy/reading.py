"""Reads a data set's files, which are foreign: nothing outside its folder is opened, nothing is evaluated as code.

In: a folder, and names relative to it. Out: JSON values, rows and pictures. A file that cannot be read at all is an
`InputError`; a row that cannot be used raises `BadRowError`, which becomes a counted, named skip.
"""

from __future__ import annotations

import ast
import base64
import binascii
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, TypeAlias

from edgevlm.bench.accuracy.items import Picture, Record, Skipped
from edgevlm.errors import InputError

#: A row as a file has it: field to anything.
Fields: TypeAlias = Mapping[str, Any]

MAX_JSON_BYTES = 1 << 29
MAX_PICTURE_BYTES = 128 << 20
#: The longest text of a question, an answer or an option; published sets stay far below.
MAX_TEXT = 20_000
_MAX_LIST_TEXT = 100_000
#: JSON can spell half of a surrogate pair, which no file can hold.
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")
_HINT = "give the files as they were published"


class BadRowError(ValueError):
    """A row that cannot be used; the message says why."""


class Folder:
    """A data set's folder, and perhaps another one for its pictures. Links that lead out of them are not followed."""

    def __init__(self, root: Path, images: Path | None = None) -> None:
        """Take the folders.

        Raises:
            InputError: one is not a folder.
        """
        for folder in (root, images):
            if folder is not None and not folder.is_dir():
                raise InputError("this is not a folder", str(folder), "give the folder that holds the data set")
        self.root = root.resolve()
        self.images = self.root if images is None else images.resolve()
        self.used: list[Path] = []

    def find(self, *names: str) -> Path | None:
        """The first of these files that is there; it counts as one of the set's files.

        Raises:
            InputError: it is a link that leads out of the folder, or no plain file.
        """
        for name in names:
            path = self.root / name
            if path.exists() or path.is_symlink():
                found = _inside(self.root, name)
                if not found.is_file():
                    raise InputError("this is not a plain file", name, _HINT)
                if found not in self.used:
                    self.used.append(found)
                return found
        return None

    def file(self, *names: str) -> Path:
        """Like `find`, but one has to be there.

        Raises:
            InputError: none is, or it leads out of the folder.
        """
        found = self.find(*names)
        if found is None:
            raise InputError(f"there is no {' or '.join(names)}", str(self.root), "see edgevlm data list")
        return found

    def picture(self, name: str, *places: str) -> Picture:
        """The picture `name`, in the first of `places` (folders relative to the pictures' folder) that has it."""

        def read() -> bytes:
            tried = [str(PurePosixPath(place) / name) for place in places or (".",)]
            for relative in tried:
                path = _inside(self.images, relative)
                try:
                    if path.is_file():
                        if path.stat().st_size > MAX_PICTURE_BYTES:
                            raise InputError("the picture's file is too large", relative, _HINT)
                        return path.read_bytes()
                except OSError as error:
                    raise InputError(f"the picture cannot be read: {error.strerror}", relative[:200], _HINT) from error
            raise InputError("the picture is missing", tried[0], "give the folder of the pictures with --images")

        return Picture(name, read)

    def fingerprint(self) -> str:
        """SHA-256 over names and contents of the files that were read."""
        lines = [f"{path.relative_to(self.root).as_posix()} {digest(path, 'sha256')}" for path in sorted(self.used)]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def digest(path: Path, algorithm: str) -> str:
    """The file's hash in hexadecimal."""
    state = hashlib.new(algorithm, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            state.update(block)
    return state.hexdigest()


def _inside(root: Path, relative: str) -> Path:
    """`root/relative` as a real path.

    Raises:
        InputError: it would lie outside of `root`.
    """
    pure = PurePosixPath(relative)
    unsafe = "\0" in relative or pure.is_absolute() or ".." in pure.parts or PureWindowsPath(relative).drive
    try:
        path = root if unsafe else (root / relative).resolve()
    except (OSError, RuntimeError, UnicodeEncodeError) as error:
        raise InputError("the path cannot be followed", relative[:200], _HINT) from error
    if unsafe or not path.is_relative_to(root):
        raise InputError(
            "the path leads out of the data set's folder", relative[:200], "copy the file, or use --images"
        )
    return path


def read_json(path: Path) -> Any:
    """The value in a JSON file.

    Raises:
        InputError: it is too large, not UTF-8 or not JSON.
    """
    if path.stat().st_size > MAX_JSON_BYTES:
        raise InputError("the file is too large", str(path), _HINT)
    try:
        return json.loads(path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError(f"the file is not UTF-8 at byte {error.start}", str(path), _HINT) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"the file is not JSON: {str(error)[:120]}", str(path), _HINT) from error


def json_list(value: Any, path: Path) -> list[Any]:
    """`value` itself.

    Raises:
        InputError: it is not a list.
    """
    if not isinstance(value, list):
        raise InputError("a list was expected here", str(path), _HINT)
    return value


def json_dict(value: Any, path: Path) -> dict[str, Any]:
    """`value` itself.

    Raises:
        InputError: it is not an object.
    """
    if not isinstance(value, dict):
        raise InputError("an object was expected here", str(path), _HINT)
    return value


def read_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """Rows of a JSONL file with their place, `line 3`; what cannot be read is a `BadRowError` in its row's place.

    Raises:
        InputError: the file is too large.
    """
    if path.stat().st_size > MAX_JSON_BYTES:
        raise InputError("the file is too large", str(path), _HINT)
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                yield f"line {number}", json.loads(line.decode("utf-8-sig"))
            except UnicodeDecodeError:
                yield f"line {number}", BadRowError("it is not UTF-8")
            except (ValueError, RecursionError):
                yield f"line {number}", BadRowError("it is not JSON")


def numbered(rows: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    """Rows of a list with their place, `row 3`."""
    return ((f"row {number}", row) for number, row in enumerate(rows, 1))


def records(
    rows: Iterable[tuple[str, Any]], make: Callable[[Fields], Record | Iterable[Record] | None]
) -> list[Record | Skipped]:
    """Records made of rows; a row that cannot be used, or repeats an id, is skipped by name.

    Args:
        rows: place and row.
        make: of one row its record or records, or None where the set does not ask it; may raise `BadRowError`.
    """
    made: list[Record | Skipped] = []
    seen: set[str] = set()
    for place, row in rows:
        try:
            if isinstance(row, BadRowError):
                raise row
            if not isinstance(row, Mapping):
                raise BadRowError("it is not an object")
            result = make(row)
            found = [result] if isinstance(result, Record) else list(result or ())
            for record in found:
                _check_texts(record)
        except BadRowError as error:
            made.append(Skipped(place, str(error)))
            continue
        for record in found:
            if record.id in seen:
                made.append(Skipped(place, f"the id {record.id[:60]} was there before"))
                continue
            seen.add(record.id)
            made.append(record)
    return made


def _check_texts(record: Record) -> None:
    names = (record.id, record.image_id, record.type, record.group)
    for text in (*names, record.question, record.hint, record.ending, *record.answers, *record.choices):
        if len(text) > MAX_TEXT:
            raise BadRowError(f"a text of {len(text):,} characters, more than {MAX_TEXT:,}")
        if _HALF_CHARACTER.search(text):
            raise BadRowError("a text with half of a surrogate pair, which is no character")


def text(row: Fields, *names: str) -> str:
    """The first of these fields that is there, as text.

    Raises:
        BadRowError: none is there, or it is no text or number.
    """
    for name in names:
        value = row.get(name)
        if isinstance(value, bool) or value is None:
            continue
        if isinstance(value, str | int | float):
            return str(value)
        raise BadRowError(f"{name} is not a text")
    raise BadRowError(f"{names[0]} is missing")


def texts(row: Fields, *names: str) -> tuple[str, ...]:
    """The first of these fields that is there, as texts: a list, a text that spells a list, or one text.

    Raises:
        BadRowError: none is there, or it holds something else.
    """
    for name in names:
        value = row.get(name)
        if value is None:
            continue
        if isinstance(value, str) and value.lstrip().startswith("["):
            value = literal_list(value)
        entries = value if isinstance(value, list) else [value]
        if not all(isinstance(entry, str | int | float) and not isinstance(entry, bool) for entry in entries):
            raise BadRowError(f"{name} does not hold texts")
        return tuple(str(entry) for entry in entries)
    raise BadRowError(f"{names[0]} is missing")


def literal_list(value: str) -> list[Any]:
    """A list that a file spells as Python or JSON text; literals only, nothing is evaluated.

    Raises:
        BadRowError: it is none, or too long.
    """
    if len(value) > _MAX_LIST_TEXT:
        raise BadRowError(f"a list of {len(value):,} characters, more than {_MAX_LIST_TEXT:,}")
    try:
        found = ast.literal_eval(value.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        raise BadRowError("a list that cannot be read") from None
    if not isinstance(found, list):
        raise BadRowError("a list that cannot be read")
    return found


def from_base64(name: str, read: Callable[[], str]) -> Picture:
    """A picture that a table holds as base64 text."""

    def decode() -> bytes:
        encoded = read().strip()
        if len(encoded) > MAX_PICTURE_BYTES:
            raise InputError("the picture is too large", name, _HINT)
        try:
            return base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError) as error:
            raise InputError("the picture is not base64", name, _HINT) from error

    return Picture(name, decode)
