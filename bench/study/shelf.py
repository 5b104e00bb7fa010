"""The bundles of a study: the unpruned one, and that of each cell from its export until it has been timed.

Each is what `edgevlm export` writes, byte for byte. What all share, the decoder, is written once. Another run of the
study takes what it finds, if that is the very bundle that was asked.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from edgevlm.bench.predictions import file_name
from edgevlm.bench.report import Row
from edgevlm.bench.study.plan import Cell, ReadFlag, with_pass
from edgevlm.bundle import Bundle, open_bundle
from edgevlm.errors import BundleError
from edgevlm.pipeline import compile_recipe
from edgevlm.progress import Report as Progress
from edgevlm.recipe import Recipe

UNPRUNED = "unpruned"


class Shelf:
    """Makes bundles in a folder."""

    def __init__(self, folder: Path, recipe: Recipe, read_flag: ReadFlag, *, keep: bool) -> None:
        """Take a folder; `keep` leaves the bundles of measured cells in it."""
        self.folder, self._recipe, self._read_flag, self._keep = folder, recipe, read_flag, keep
        self._unpruned: Bundle | None = None

    def path(self, name: str) -> Path:
        """Where the bundle of that name goes."""
        return self.folder / file_name(name)

    def recipe(self, cell: Cell) -> Recipe:
        """What a cell's bundle is made by."""
        return with_pass(self._recipe, self._read_flag(cell.flag))

    def unpruned(self, row: Row | None, progress: Progress) -> Bundle:
        """The bundle without a method; made once, unless that of the row is still there.

        Raises:
            EdgeVLMError: it cannot be made.
        """
        self._unpruned = self._unpruned or self._found(row)
        if self._unpruned is None:
            base = self._recipe.model_copy(update={"calibration": None})
            self._unpruned = compile_recipe(base, self.path(UNPRUNED), force=True, progress=progress)
        return self._unpruned

    def pruned(self, cell: Cell, row: Row | None, like: Bundle, progress: Progress) -> Bundle:
        """The bundle of a cell; made unless that of the row is still there.

        Raises:
            EdgeVLMError: it cannot be made.
        """
        return self._found(row) or compile_recipe(
            self.recipe(cell), self.path(cell.name), force=True, like=like, progress=progress
        )

    def _found(self, row: Row | None) -> Bundle | None:
        """The bundle that a row is about, if it is still there with the very same files."""
        if row is None or row.status != "ok":
            return None
        try:
            bundle = open_bundle(self.path(row.name), verify=True)
        except BundleError:
            return None
        there = {entry.path: entry.sha256 for entry in bundle.manifest.artifacts}
        return bundle if there == {file.path: file.sha256 for file in row.files} else None

    def drop(self, name: str) -> None:
        """A bundle has been timed, or never will be."""
        if not self._keep:
            shutil.rmtree(self.path(name), ignore_errors=True)

    def close(self) -> None:
        """The study is over."""
        if not self._keep:
            shutil.rmtree(self.folder, ignore_errors=True)
