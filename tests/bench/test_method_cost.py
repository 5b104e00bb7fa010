"""A method's cost is the time with it less the time without, taken by turns, and none where the graphs are equal."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench_bundles import settings
from tiny import tiny_bundle, tiny_model

from edgevlm.bench import method_cost as module
from edgevlm.bench.method_cost import method_cost
from edgevlm.bundle import Bundle, Manifest, open_bundle, sha256_file, write_manifest
from edgevlm.errors import EdgeVLMError

ASKED = settings(threads=1, silence_s=300)


def changed(bundle: Bundle, content: bytes) -> Bundle:
    """The bundle with other bytes behind its vision graph's end."""
    path = bundle.artifact("vision", ".onnx")
    path.write_bytes(path.read_bytes() + content)
    entries = [
        entry.model_copy(update={"sha256": sha256_file(path), "bytes": path.stat().st_size})
        if entry.role == "vision"
        else entry
        for entry in bundle.manifest.artifacts
    ]
    write_manifest(bundle.path, Manifest.model_validate({**bundle.manifest.model_dump(), "artifacts": entries}))
    return open_bundle(bundle.path)


def test_real_graphs_are_compared_and_equal_ones_are_not(tmp_path: Path) -> None:
    model = tiny_model()
    first, second = (tiny_bundle(model, tmp_path / name) for name in ("first", "second"))
    assert method_cost(first, second, "onnxruntime", ASKED) is None
    # Field 1000, a varint: an unknown field of the protobuf message, which readers skip.
    other = changed(second, b"\xc0\x3e\x01")
    found = method_cost(first, other, "onnxruntime", ASKED)
    assert found is not None
    assert found.n >= 20
    assert math.isfinite(found.median)
    broken = changed(other, b"\xff\xff\xff")
    with pytest.raises(EdgeVLMError):
        method_cost(first, broken, "onnxruntime", ASKED)


def test_the_difference_has_the_right_sign_and_both_take_turns_at_being_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model()
    paths = [tiny_bundle(model, tmp_path / name).path for name in ("without", "with")]
    now, order = [0.0], []

    class Engine:
        def __init__(self, name: str) -> None:
            self.name = name

        def encode(self, pixels: np.ndarray) -> None:
            assert pixels.shape == (1, 3, 64, 64)
            order.append(self.name)
            now[0] += {"without": 0.005, "with": 0.007}[self.name]

    monkeypatch.setattr(module, "open_vision", lambda bundle, *_: Engine(bundle.path.name))
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    arguments: dict[str, Any] = {"engine": "x", "threads": 1, "size": [96, 64], "seed": 0, "min_time_s": 0}
    found = module.serve(lambda _: None, [str(path) for path in paths], **arguments)
    assert found == pytest.approx([2.0] * 20)
    pairs = [tuple(order[index : index + 2]) for index in range(2, len(order), 2)]
    assert set(pairs[::2]) == {("with", "without")}
    assert set(pairs[1::2]) == {("without", "with")}
