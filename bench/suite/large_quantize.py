"""GPTQ of a full-size decoder, calibrated with images: the time and memory of the whole export."""

from pathlib import Path
from typing import Any

import pytest

from edgevlm.bench.suite.full_size import export
from edgevlm.bench.suite.verdict import tell
from edgevlm.bundle import open_bundle
from edgevlm.recipe import CalibrationData, PassEntry, Recipe

MOST_SECONDS, MOST_BYTES = 15 * 60, 5e9
SAMPLES = 128


def test_gptq_of_a_whole_decoder(
    benchmark: Any, capsys: pytest.CaptureFixture[str], checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From nothing: no statistics of an earlier run."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(checkpoint.parent / "cache"))
    entry = PassEntry.model_validate({"name": "quantize", "scheme": "w4-gptq"})
    calibration = CalibrationData(source="scenes", n=SAMPLES)
    recipe = Recipe(model=str(checkpoint), passes=(entry,), calibration=calibration)
    made = benchmark.pedantic(export, (recipe, checkpoint.parent / "gptq"), rounds=1)
    bundle = open_bundle(made.bundle)
    minutes, peak, size = made.seconds / 60, made.peak_rss_bytes / 1e9, bundle.total_bytes / 1e6
    met = made.seconds <= MOST_SECONDS and made.peak_rss_bytes <= MOST_BYTES
    figure = f"{minutes:.1f} min, {peak:.2f} GB peak, bundle {size:.0f} MB"
    tell(capsys, benchmark, f"GPTQ with {SAMPLES} samples", figure, "at most 15 min, 5 GB", met)
