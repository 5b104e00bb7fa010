"""Our int4 ONNX decoder against the one onnxruntime-genai's own builder makes of the same weights.

Each runs in a process of its own, as it would in an app, and they take turns: in one process the model that is loaded
first, and how the system maps the weights of the others, alone make some percent of difference.
"""

import statistics
from pathlib import Path
from typing import Any

import pytest

from edgevlm.bench.suite import genai
from edgevlm.bench.suite.full_size import Exported
from edgevlm.bundle import open_bundle
from edgevlm.child import run_child
from edgevlm.runtimes.checks import thread_count

pytest.importorskip("onnxruntime_genai", reason="pip install --no-deps onnxruntime-genai==0.18.0")

CONTEXT = 1024
POSITIONS, STEPS, ROUNDS, TURNS = 286, 32, 4, 5
_TIMEOUT_S = 300.0


class Sides:
    """Ours and theirs, each with the milliseconds that its processes measured."""

    def __init__(self, bundle: Path, folder: Path) -> None:
        common = {"threads": thread_count(0), "context": CONTEXT, "positions": POSITIONS}
        counts = {"rounds": ROUNDS, "steps": STEPS}
        self._arguments = {
            "ours": {"folder": str(bundle), **common, **counts},
            "theirs": {"folder": str(folder), **common, **counts},
        }
        self.prefill: dict[str, list[float]] = {"ours": [], "theirs": []}
        self.decode: dict[str, list[float]] = {"ours": [], "theirs": []}

    def turn(self, side: str) -> None:
        """One process from start to end."""
        module = {"ours": "decoder_rounds", "theirs": "genai"}[side]
        found = run_child(
            f"edgevlm.bench.suite.{module}:measure",
            self._arguments[side],
            timeout=_TIMEOUT_S,
            environment={"ORT_DISABLE_TELEMETRY": "1"},
        ).value
        self.prefill[side] += found["prefill"]
        self.decode[side] += found["decode"]


@pytest.fixture(scope="module")
def sides(checkpoint: Path, exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> Sides:
    bundle = open_bundle(exported("onnx", "int4").bundle)
    work = tmp_path_factory.mktemp("genai")
    genai.write_qwen2(checkpoint, bundle.spec.decoder, work / "qwen2")
    return Sides(bundle.path, genai.build(work / "qwen2", work / "model"))


def test_speed(benchmark: Any, capsys: pytest.CaptureFixture[str], sides: Sides) -> None:
    """Greedy in both: their time of a step includes their search, ours the argmax."""
    benchmark.pedantic(sides.turn, ("ours",), setup=lambda: sides.turn("theirs"), rounds=TURNS)
    for what, times in ((f"prefill of {POSITIONS}", sides.prefill), ("decode", sides.decode)):
        ours, theirs = (statistics.median(times[side]) for side in ("ours", "theirs"))
        benchmark.extra_info[f"{what}, speed over onnxruntime-genai"] = round(theirs / ours, 4)
        with capsys.disabled():
            print(f"\n  {what}: {ours:.2f} ms, onnxruntime-genai {theirs:.2f} ms, speed {theirs / ours:.3f} ", end="")
            print(f"(at least 1: {'met' if theirs >= ours else 'NOT MET'})")
