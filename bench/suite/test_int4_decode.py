"""What int4 gains decode steps: our bundles of a full-size model in int4 against the same in float16, by turns.

A step reads each weight once, so that the bytes decide. On a CPU llama.cpp has kernels for float16; ONNX Runtime's
widen it, so that the better of both formats in float16 is what int4 is measured against.
"""

import statistics
from typing import Any

import pytest

from edgevlm.bench.suite.full_size import Exported
from edgevlm.bench.suite.verdict import tell
from edgevlm.child import run_child
from edgevlm.runtimes.checks import thread_count

LEAST = 1.6
POSITIONS, STEPS, ROUNDS, TURNS = 286, 16, 2, 3
_TIMEOUT_S = 600.0


def test_int4_against_half(benchmark: Any, capsys: pytest.CaptureFixture[str], exported: Exported) -> None:
    sides = [(kind, precision) for kind in ("onnx", "gguf") for precision in ("int4", "fp16")]
    took: dict[tuple[str, str], list[float]] = {side: [] for side in sides}
    common = {"threads": thread_count(0), "context": 1024, "positions": POSITIONS, "rounds": ROUNDS, "steps": STEPS}
    for side in sides:
        exported(*side)

    def turn() -> None:
        for side in sides:
            arguments = {"folder": str(exported(*side).bundle), **common}
            found = run_child("edgevlm.bench.suite.decoder_rounds:measure", arguments, timeout=_TIMEOUT_S)
            took[side] += found.value["decode"]

    benchmark.pedantic(turn, rounds=TURNS)
    ms = {side: statistics.median(times) for side, times in took.items()}
    for kind in ("onnx", "gguf"):
        figure = f"{ms[kind, 'fp16']:.1f} to {ms[kind, 'int4']:.1f} ms, {ms[kind, 'fp16'] / ms[kind, 'int4']:.2f} times"
        tell(capsys, benchmark, f"decode in int4 against float16, {kind}", figure, "no bound", met=True)
    half, narrow = (min(ms[kind, precision] for kind in ("onnx", "gguf")) for precision in ("fp16", "int4"))
    figure = f"{half:.1f} to {narrow:.1f} ms, {half / narrow:.2f} times as fast"
    tell(capsys, benchmark, "decode, the better formats", figure, f"at least {LEAST}", half / narrow >= LEAST)
