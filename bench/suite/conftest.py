"""One full-size checkpoint and its bundles for the whole suite; made once, since each takes minutes."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from edgevlm.bench.suite.full_size import Export, Exported, export
from edgevlm.recipe import Recipe
from edgevlm.zoo.synth import synth


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Exports come first: the benchmark that times them has to be the one that makes them."""
    items.sort(key=lambda item: item.path.name != "test_export_time.py")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fastvlm-0.5b in Apple's layout with random weights."""
    folder = tmp_path_factory.mktemp("suite") / "fastvlm-0.5b"
    synth("fastvlm-0.5b", folder)
    return folder


@pytest.fixture(scope="session")
def exported(checkpoint: Path) -> Exported:
    """Export the checkpoint as `onnx` or `gguf` at a precision, once each."""

    @cache
    def once(kind: str, precision: str) -> Export:
        recipe = Recipe.from_sources(None, {"model": str(checkpoint), "format": kind, "precision": precision})
        return export(recipe, checkpoint.parent / f"{kind}-{precision}")

    return once
