"""What a row of the suite says of a bound: a line on the terminal, and the figure in the benchmark's JSON."""

from __future__ import annotations

from typing import Any

import pytest


def tell(capsys: pytest.CaptureFixture[str], benchmark: Any, what: str, figure: str, bound: str, met: bool) -> None:
    """Print `what: figure (bound: met)` and keep it."""
    verdict = f"{bound}: {'met' if met else 'NOT MET'}"
    benchmark.extra_info[what] = {"figure": figure, "verdict": verdict}
    with capsys.disabled():
        print(f"\n  {what}: {figure} ({verdict})")
