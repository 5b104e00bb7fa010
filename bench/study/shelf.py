"""The bundles of a study: the unpruned one, and that of a cell for as long as it is measured.

Each is what `edgevlm export` writes, byte for byte. What all share, the decoder, is written once.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from edgevlm.bench.study.plan import Cell, ReadFlag, with_pass
from edgevlm.bench.sweep import file_name
from edgevlm.bundle import Bundle
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

    def unpruned(self, progress: Progress) -> Bundle:
        """The bundle without a method; made once.

        Raises:
            EdgeVLMError: it cannot be made.
        """
        if self._unpruned is None:
            base = self._recipe.model_copy(update={"calibration": None})
            self._unpruned = compile_recipe(base, self.path(UNPRUNED), force=True, progress=progress)
        return self._unpruned

    def pruned(self, cell: Cell, progress: Progress) -> Bundle:
        """The bundle of a cell.

        Raises:
            EdgeVLMError: it cannot be made.
        """
        like = self.unpruned(progress)
        return compile_recipe(self.recipe(cell), self.path(cell.name), force=True, like=like, progress=progress)

    def drop(self, name: str) -> None:
        """A bundle has been measured."""
        if not self._keep:
            shutil.rmtree(self.path(name), ignore_errors=True)

    def close(self) -> None:
        """The study is over."""
        if not self._keep:
            shutil.rmtree(self.folder, ignore_errors=True)
