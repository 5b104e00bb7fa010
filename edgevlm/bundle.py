"""A bundle: the folder an app loads. This module reads and writes its manifest and guards what it points to.

`manifest.json` names every file with its size and SHA-256; opening a bundle checks sizes always and hashes on
`verify=True`, and refuses paths that leave the folder, symbolic links and unknown schema versions. Nothing in a bundle
is ever executed or unpickled. The format is documented in docs/bundle.md.
"""

from __future__ import annotations

import hashlib
import json
import stat
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgevlm.atomic import TEMPORARY_PREFIX, write_text
from edgevlm.errors import BundleError
from edgevlm.spec import ModelSpec
from edgevlm.validation import first_problem

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
_HINT = "export the bundle again, or copy it again from where it came"
#: Where `edgevlm build` puts engines; they can be made anew without an export.
ENGINE_FOLDER = "tensorrt"
_ENGINE_HINT = "build it again: edgevlm build BUNDLE --target NAME"
_MAX_MANIFEST_BYTES = 16 << 20


class ArtifactEntry(BaseModel):
    """One file: where, what for, and how to know it again."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str
    role: str
    format: str
    precision: str = ""
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bits_per_weight: float = 0.0
    parameters: int = 0


class ParityResult(BaseModel):
    """One verified figure against the original: it passed when `value >= threshold`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    stage: str
    metric: str
    value: float
    threshold: float
    passed: bool


class Manifest(BaseModel):
    """The content of `manifest.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int
    name: str
    format: str
    spec: dict[str, Any]
    recipe: dict[str, Any]
    artifacts: list[ArtifactEntry]
    parity: list[ParityResult] = []
    tools: dict[str, str] = {}
    source_sha256: dict[str, str] = {}
    licence: str = "unknown"


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: its folder, manifest and spec."""

    path: Path
    manifest: Manifest
    spec: ModelSpec

    def artifact(self, role: str, suffix: str = "") -> Path:
        """The file of that role (and ending).

        Raises:
            BundleError: there is none.
        """
        entry = self.find(role, suffix)
        if entry is None:
            raise BundleError(f"the bundle has no {role} artefact {suffix}".rstrip(), str(self.path), _HINT)
        return self.path / entry.path

    def find(self, role: str, suffix: str = "") -> ArtifactEntry | None:
        """The manifest's entry of that role (and ending), or None."""
        for entry in self.manifest.artifacts:
            if entry.role == role and entry.path.endswith(suffix):
                return entry
        return None

    @property
    def total_bytes(self) -> int:
        """Bytes of all artefacts."""
        return sum(entry.bytes for entry in self.manifest.artifacts)


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest, the last file of a bundle, or the one of a bundle that got new files; in one step."""
    text = json.dumps(manifest.model_dump(mode="json"), indent=2, sort_keys=True, ensure_ascii=False)
    write_text(folder / MANIFEST, text + "\n")


def open_bundle(path: str | Path, *, verify: bool = False, unfinished: bool = False) -> Bundle:
    """Open and check a bundle.

    Args:
        path: the folder.
        verify: also compare every file's SHA-256.
        unfinished: accept a folder that an export is still writing (its verification does).

    Raises:
        BundleError: no manifest, an unknown schema, an escaping path, a link, a missing file, another size or hash.
    """
    folder = Path(path)
    if not unfinished and any(part.startswith(TEMPORARY_PREFIX) for part in folder.resolve().parts):
        raise BundleError("this folder is an export that did not finish", str(folder), "export again")
    manifest = read_manifest(folder)
    for entry in manifest.artifacts:
        _check_artifact(folder, entry, verify=verify)
    return Bundle(folder, manifest, ModelSpec.from_dict(manifest.spec))


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a bundle; the files that it names are not looked at.

    Raises:
        BundleError: there is none, it cannot be read, or its schema is unknown.
    """
    file = folder / MANIFEST
    if not folder.is_dir():
        raise BundleError("there is no such folder", str(folder), "give the folder that `edgevlm export` wrote")
    if not file.is_file() or file.is_symlink():
        raise BundleError("this folder is not a bundle: it has no manifest.json", str(folder), "run `edgevlm export`")
    try:
        if file.stat().st_size > _MAX_MANIFEST_BYTES:
            raise BundleError("manifest.json is too large", str(file), _HINT)
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"manifest.json cannot be read: {error}", str(file), _HINT) from error
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version != SCHEMA_VERSION:
        raise BundleError(
            f"unknown bundle schema version {version!r:.20}",
            str(file),
            f"this edgevlm reads version {SCHEMA_VERSION}",
        )
    try:
        return Manifest.model_validate(data)
    except ValidationError as error:
        field, problem = first_problem(error)
        raise BundleError(f"manifest.json: {field}: {problem}", str(file), _HINT) from error


def _check_artifact(folder: Path, entry: ArtifactEntry, *, verify: bool) -> None:
    relative = PurePosixPath(entry.path)
    if (
        relative.is_absolute()
        or not relative.parts
        or ".." in relative.parts
        or "\\" in entry.path
        or ":" in entry.path
        or "\0" in entry.path
    ):
        raise BundleError("an artefact's path leaves the bundle", f"{folder / MANIFEST}: {entry.path}", _HINT)
    hint = _ENGINE_HINT if relative.parts[0] == ENGINE_FOLDER else _HINT
    path = folder
    try:
        for part in relative.parts:
            path = path / part
            if path.is_symlink():
                raise BundleError("a bundle may not hold symbolic links", str(path), _HINT)
        info = path.stat()
    except OSError as error:
        raise BundleError("an artefact is missing", str(path), hint) from error
    if not stat.S_ISREG(info.st_mode):
        raise BundleError("an artefact is not a plain file", str(path), _HINT)
    if info.st_size != entry.bytes:
        raise BundleError(f"an artefact has {info.st_size} bytes instead of {entry.bytes}", str(path), hint)
    if verify and sha256_file(path) != entry.sha256:
        raise BundleError("an artefact was altered: its SHA-256 differs", str(path), hint)
