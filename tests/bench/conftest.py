"""One sweep over healthy and broken bundles for all tests of this folder."""

from pathlib import Path

import pytest
from bench_bundles import hollow_bundle, settings

from edgevlm.bench.report import Report
from edgevlm.bench.sweep import sweep

NAMES = ("fp32", "wrong-3", "crash", "size", "gaps", "exception", "load")


@pytest.fixture(scope="session")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, Path]:
    """The report of the sweep and its folder; the bundles behave as `bench_fakes` says of their names."""
    folder = tmp_path_factory.mktemp("sweep")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))
        report = sweep(
            [hollow_bundle(folder / name) for name in NAMES],
            settings(items=30, control=True, silence_s=300),
            folder / "out",
            baseline=str(folder / "fp32"),
            progress=lambda *_: None,
            worker="bench_fakes:serve",
        )
    return report, folder / "out"
