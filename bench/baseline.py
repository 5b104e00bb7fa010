"""Finds the uncompressed model that a bundle is compared with, and says why not where there is none.

It is the checkpoint in the manifest's recipe, at its own resolution and in float32 on torch, provided that torch is
installed, the checkpoint is here, and its files are those that the bundle was made from.
"""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from edgevlm.bundle import Bundle, sha256_file
from edgevlm.errors import EdgeVLMError, UnsupportedError


@dataclass(frozen=True)
class Reference:
    """An uncompressed model to ask: how it was named, where its files are, and a hash over all of them."""

    model: str
    folder: Path
    content: str

    @property
    def name(self) -> str:
        """As the report shows it."""
        return f"{Path(self.model).name if '/' in self.model else self.model} (uncompressed)"


def find_reference(model: str) -> Reference:
    """The checkpoint that `model` names: a folder, a `zoo:` name or a hub id.

    Raises:
        UnsupportedError: torch is not installed.
        InputError: there is no such model.
    """
    if importlib.util.find_spec("torch") is None:
        raise UnsupportedError("torch is not installed", model, "give a bundle as --baseline")
    from edgevlm.models import resolve

    folder = resolve(model)
    return Reference(model, folder, _content(folder))


def reference_of(bundle: Bundle) -> Reference | str:
    """The model that `bundle` was made from, or the reason why it cannot be asked.

    A manifest may come from a stranger, so what it names is never downloaded.
    """
    model, sources = bundle.manifest.recipe.get("model"), bundle.manifest.source_sha256
    if not isinstance(model, str) or not sources:
        return "the manifest names no source model"
    if not model.startswith("zoo:") and not Path(model).is_dir():
        return f"{model} is not a folder here; name the model with --baseline"
    try:
        reference = find_reference(model)
    except EdgeVLMError as error:
        return f"{model}: {error.what}"
    for name, expected in sources.items():
        file = reference.folder / name
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            return f"the manifest names a source file outside the checkpoint: {name}"
        if not file.is_file() or sha256_file(file) != expected:
            return f"{model} is not the checkpoint that the bundle was made from: {name} differs"
    return reference


def _content(folder: Path) -> str:
    """A hash over names and contents of the folder's own files."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    lines = [f"{path.name} {sha256_file(path)}" for path in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
