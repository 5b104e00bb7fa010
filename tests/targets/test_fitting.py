"""The forecast reproduces published runs that it was not fitted to; its errors are printed (pytest -s)."""

import importlib.util
from pathlib import Path

import pytest

from edgevlm.targets.constants import constants_for, entries
from edgevlm.targets.fitting import Error, errors, fit, fit_all
from edgevlm.targets.measurements import Measurements, read_measurements

TOOL = Path(__file__).parents[2] / "tools" / "fit_targets.py"
#: Relative errors that are allowed on held-back rows.
BOUNDS = {"decode": 0.10, "prefill": 0.25, "vision": 0.25}


@pytest.fixture(scope="module")
def data() -> Measurements:
    return read_measurements()


@pytest.fixture(scope="module")
def held_back(data: Measurements) -> list[Error]:
    """Errors on the half that was not fitted."""
    known = fit(data, [row for row in data.rows if not row.held_back])
    return errors(data, [row for row in data.rows if row.held_back], known)


@pytest.mark.parametrize("stage", BOUNDS)
def test_held_back_runs_are_reproduced(held_back: list[Error], stage: str) -> None:
    of_stage = [error for error in held_back if error.stage == stage]
    for error in of_stage:
        row = error.row
        print(f"{row.target} {row.model} {stage}: {error.measured:g} -> {error.predicted:.1f} ({error.relative:+.1%})")
    assert len(of_stage) >= 5
    assert max(abs(error.relative) for error in of_stage) <= BOUNDS[stage]


def test_half_of_the_runs_check_the_other_half(data: Measurements) -> None:
    held = sum(row.held_back for row in data.rows)
    assert 0.35 < held / len(data.rows) < 0.65
    assert {row.target for row in data.rows if row.held_back} >= {
        "jetson-orin-nano",
        "jetson-orin-nano-super",
        "jetson-orin-nx-16gb-super",
        "jetson-agx-orin-64gb",
        "jetson-agx-thor",
    }


def test_forecasts_would_be_wrong_without_the_fit(data: Measurements) -> None:
    """All of the peak, and no time for layers: the bounds do not hold by themselves."""
    ideal = [
        entry.model_copy(
            update={"decode_efficiency": 1.0, "layer_us_ghz": 0.0, "prefill_efficiency": 1.0, "vision_efficiency": 1.0}
        )
        for entry in fit(data, data.rows)
    ]
    wrong = errors(data, data.rows, ideal)
    for stage, bound in BOUNDS.items():
        assert sum(abs(error.relative) > bound for error in wrong if error.stage == stage) >= 4


def test_every_row_names_its_source(data: Measurements) -> None:
    assert {row.source for row in data.rows} == set(data.sources)


def test_the_shipped_constants_are_those_of_the_rows(data: Measurements) -> None:
    spec = importlib.util.spec_from_file_location("fit_targets", TOOL)
    assert spec is not None and spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    from edgevlm.targets.constants import PATH

    assert PATH.read_text(encoding="utf-8") == tool.written(fit_all(data)), "run python tools/fit_targets.py"


def test_every_target_has_constants_for_what_it_runs() -> None:
    from edgevlm.targets.catalog import load_target, target_names
    from edgevlm.targets.constants import RUNTIME_OF

    for name in target_names():
        profile = load_target(name)
        formats = ("onnx", "gguf") if profile.kind == "cpu" else ("onnx", "gguf", "tensorrt")
        for format_ in formats:
            constants = constants_for(profile, RUNTIME_OF[format_])
            assert 0 < constants.decode_efficiency <= 1, name
    assert any(entry.basis.startswith("assumed") for entry in entries())


def test_the_errors_in_the_manual_are_those_of_the_fit(held_back: list[Error]) -> None:
    page = (TOOL.parents[1] / "docs" / "targets.md").read_text(encoding="utf-8")
    for error in held_back:
        row = error.row
        numbers = f"{error.measured:g} | {error.predicted:.1f} | {100 * error.relative:+.1f}%"
        assert f"| `{row.target}` | {row.runtime} | {row.model} | {error.stage} | {numbers} |" in page
