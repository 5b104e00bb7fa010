"""One sweep over healthy and broken bundles, and one study, for all tests of this folder."""

from pathlib import Path

import pytest
import study_fakes
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


@pytest.fixture(scope="session")
def studied(tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, Path]:
    """The report of a study and its folder; its methods behave as `study_fakes` says."""
    out = tmp_path_factory.mktemp("study") / "out"
    with pytest.MonkeyPatch.context() as patch:
        study_fakes.prepare(patch)
        report = study_fakes.study(study_fakes.request(out))
    return report, out
