"""Models of several billion parameters are exported within their budgets; run by `make bench-large`, not by the suite.

Each checkpoint takes up to 20 GB on disk and is deleted after its exports.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgevlm.bench.suite.full_size import export
from edgevlm.bundle import Bundle, open_bundle
from edgevlm.recipe import Recipe
from edgevlm.zoo.synth import synth

#: Checkpoint, format, peak bytes of the export's process tree, and seconds where there is a bound.
CASES = (
    ("fastvlm-1.5b", "onnx", 6e9, None),
    ("fastvlm-1.5b", "gguf", 6e9, None),
    ("tinygpt-v", "onnx", 9e9, None),
    ("llava-mini-8b", "gguf", 9e9, 25 * 60),
)
#: Random untied heads have nearly flat logits, whose order int4 changes freely; the cosines still hold.
FREE = {"top1_agreement": 0, "token_agreement": 0}
#: Of the bytes that bits times parameters come to.
SIZE_TOLERANCE = 0.02


@pytest.fixture(scope="session")
def checkpoints() -> dict[str, Path]:
    """The checkpoint on disk, by name; only the last one made is kept."""
    return {}


@pytest.fixture
def checkpoint(
    request: pytest.FixtureRequest, checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """A synthetic checkpoint by its name; the one before it is deleted."""
    name: str = request.param
    if name not in checkpoints:
        for folder in checkpoints.values():
            shutil.rmtree(folder)
        checkpoints.clear()
        folder = tmp_path_factory.mktemp("large") / name
        synth(name, folder)
        checkpoints[name] = folder
    yield checkpoints[name]


def weight_bytes(bundle: Bundle) -> tuple[float, int]:
    """Bytes that bits times parameters come to, and bytes of the files that hold weights."""
    holding = [entry for entry in bundle.manifest.artifacts if entry.parameters]
    return sum(entry.parameters * entry.bits_per_weight / 8 for entry in holding), sum(e.bytes for e in holding)


@pytest.mark.parametrize(("checkpoint", "kind", "memory", "seconds"), CASES, indirect=["checkpoint"])
def test_export(
    benchmark: Any, checkpoint: Path, kind: str, memory: float, seconds: float | None, tmp_path: Path
) -> None:
    recipe = Recipe.from_sources(None, {"model": str(checkpoint), "format": kind, "precision": "int4", "verify": FREE})
    done = benchmark.pedantic(export, (recipe, tmp_path / kind), rounds=1, iterations=1)
    bundle = open_bundle(done.bundle)
    expected, held = weight_bytes(bundle)
    peak = done.peak_rss_bytes
    benchmark.extra_info.update(seconds=done.seconds, peak_rss_bytes=peak, bundle_bytes=bundle.total_bytes)
    print(
        f"\n{checkpoint.name} to {kind}: {done.seconds / 60:.1f} min, {peak / 1e9:.2f} GB peak, "
        f"bundle {bundle.total_bytes / 1e6:.0f} MB, weights {held / expected - 1:+.2%} against bits x parameters"
    )
    shutil.rmtree(done.bundle)
    assert peak < memory
    assert seconds is None or done.seconds < seconds
    assert abs(held / expected - 1) < SIZE_TOLERANCE
