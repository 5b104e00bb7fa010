"""Scripts that use packages of tests/oracles.txt, each run in a process of its own, which alone sees them."""

import os
import subprocess
import sys
from pathlib import Path

_PACKAGES = Path(sys.prefix) / "oracle"


def run_oracle(script: Path, *arguments: object) -> str:
    """What the script prints on standard output."""
    assert _PACKAGES.is_dir(), f"the oracles' packages are not in {_PACKAGES}; run `make test`"
    run = subprocess.run(
        [sys.executable, script, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(_PACKAGES), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return run.stdout
