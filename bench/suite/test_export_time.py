"""A full-size model is exported within its budget of time, memory and size."""

from __future__ import annotations

from typing import Any

import pytest

from edgevlm.bench.suite.full_size import Exported
from edgevlm.bundle import open_bundle

#: Seconds, peak bytes of the export, bytes of the bundle.
LIMITS = {"onnx": (240, 6e9, 0.75e9), "gguf": (180, 4e9, 0.75e9)}


@pytest.mark.parametrize("kind", LIMITS)
def test_export(benchmark: Any, exported: Exported, kind: str) -> None:
    seconds, memory, size = LIMITS[kind]
    done = benchmark.pedantic(exported, (kind, "int4"), rounds=1, iterations=1)
    bundle = open_bundle(done.bundle).total_bytes
    peak = done.peak_rss_bytes
    benchmark.extra_info.update(seconds=done.seconds, peak_rss_bytes=peak, bundle_bytes=bundle, limits=LIMITS[kind])
    print(f"\nexport to {kind}: {done.seconds:.0f} s, {peak / 1e9:.2f} GB peak, bundle {bundle / 1e6:.0f} MB")
    assert done.seconds < seconds
    assert peak < memory
    assert bundle < size
