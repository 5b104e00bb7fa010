"""A run of the benchmark suite is held to the baseline of its class of machines; all files here are made up."""

import json
from pathlib import Path
from typing import Any

import pytest

from edgevlm.bench.suite import baseline
from edgevlm.bench.suite.baseline import Baseline, Change, Timing, read_baseline, read_run, run
from edgevlm.bench.suite.machine_class import MachineClass, family, this_class
from edgevlm.errors import InputError

MACHINE = MachineClass(family="acme-one", features=("avx2", "f16c"), cores=2)


def write_run(path: Path, **seconds: tuple[float, float]) -> Path:
    """A file like pytest-benchmark's: each row's median and interquartile range in seconds."""
    benchmarks: list[dict[str, Any]] = [
        {
            "fullname": f"bench/suite/test_{name}.py::test_it[a]",
            "name": "test_it[a]",
            "extra_info": {"figure": 1},
            "stats": {"median": median, "iqr": iqr, "rounds": 5, "mean": 9.0, "data": [median] * 5},
        }
        for name, (median, iqr) in seconds.items()
    ]
    commit = {"id": "0123456789abcdef", "dirty": False, "branch": "main"}
    file = {"datetime": "2026-01-02T03:04:05.678", "commit_info": commit, "benchmarks": benchmarks, "machine_info": {}}
    path.write_text(json.dumps(file))
    return path


def saved(tmp_path: Path, **seconds: tuple[float, float]) -> Path:
    """A folder with a baseline of `MACHINE`."""
    folder = tmp_path / "baselines"
    assert run(write_run(tmp_path / "before.json", **seconds), folder, MACHINE, save_it=True, strict=False) == 0
    return folder


@pytest.mark.parametrize(
    ("before", "now", "verdict"),
    [
        ((10, 0.1), (11.5, 0.1), "slower"),
        ((10, 0.1), (10.9, 0.1), ""),
        ((10, 2.0), (11.5, 0.1), ""),
        ((10, 0.1), (11.5, 2.0), ""),
        ((10, 0.1), (8.5, 0.1), "faster"),
        ((10, 2.0), (8.5, 0.1), ""),
    ],
)
def test_a_row_is_marked_beyond_both_spreads_and_ten_percent(
    before: tuple[float, float], now: tuple[float, float], verdict: str
) -> None:
    sides = [Timing(median_ms=median, iqr_ms=iqr, rounds=5) for median, iqr in (before, now)]
    assert Change("row", *sides).verdict == verdict


def test_ratios_are_printed_and_only_strict_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = saved(tmp_path, same=(0.1, 0.001), worse=(0.1, 0.001), gone=(0.1, 0.001))
    capsys.readouterr()
    later = write_run(tmp_path / "now.json", same=(0.101, 0.001), worse=(0.15, 0.001), fresh=(0.1, 0.001))
    assert run(later, folder, MACHINE, save_it=False, strict=False) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert lines["test_worse.py::test_it[a]"].split()[-2:] == ["1.500", "slower"]
    assert lines["test_same.py::test_it[a]"].split()[-1] == "1.010"
    assert lines["test_gone.py::test_it[a]"].endswith("not run")
    assert lines["test_fresh.py::test_it[a]"].endswith("new")
    assert lines["1"] == "1 of 3 rows are slower beyond their spread and 10%"
    assert run(later, folder, MACHINE, save_it=False, strict=True) == 1


def test_a_baseline_is_medians_and_spreads_alone_and_keeps_rows_that_were_not_run(tmp_path: Path) -> None:
    folder = saved(tmp_path, one=(0.1, 0.01), two=(0.2, 0.02))
    part = write_run(tmp_path / "part.json", two=(0.3, 0.03))
    run(part, folder, MACHINE, save_it=True, strict=True)
    (file,) = folder.iterdir()
    assert file.name == "acme-one-2c-avx2+f16c.json"
    assert json.loads(file.read_text()) == {
        "machine": {"family": "acme-one", "features": ["avx2", "f16c"], "cores": 2},
        "taken": "2026-01-02T03:04:05",
        "commit": "0123456789ab",
        "rows": {
            "test_one.py::test_it[a]": {"median_ms": 100.0, "iqr_ms": 10.0, "rounds": 5},
            "test_two.py::test_it[a]": {"median_ms": 300.0, "iqr_ms": 30.0, "rounds": 5},
        },
    }


def test_machines_of_another_class_are_not_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = saved(tmp_path, one=(0.1, 0.01))
    other = MACHINE.model_copy(update={"cores": 4})
    later = write_run(tmp_path / "now.json", one=(1.0, 0.01))
    capsys.readouterr()
    assert run(later, folder, other, save_it=False, strict=True) == 0
    assert "No baseline for acme-one-4c-avx2+f16c" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("Intel(R) Xeon(R) Platinum 8488C CPU @ 2.40GHz", "intel-xeon-platinum-8488c"),
        ("Intel(R) Xeon(R) Processor @ 2.50GHz", "intel-xeon"),
        ("AMD EPYC 7763 64-Core Processor", "amd-epyc-7763"),
        ("Raspberry Pi 5 Model B Rev 1.0", "raspberry-pi-5-model-b-rev-1-0"),
        ("../../etc", "etc"),
        ("", "unknown"),
    ],
)
def test_a_family_is_the_name_without_the_clock(model: str, expected: str) -> None:
    assert family(model) == expected


def test_a_class_reads_what_the_kernel_says(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("model name\t: AMD EPYC 7763 64-Core Processor\nflags\t\t: fpu avx2 amx_tile unheard_of\n")
    found = this_class(cpuinfo)
    assert found.name == f"amd-epyc-7763-{found.cores}c-avx2+amx_tile"


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"datetime": "", "commit_info": {}, "benchmarks": []}', '{"benchmarks": [{}]}']
)
def test_a_file_of_another_kind_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(InputError):
        read_run(tmp_path / "run.json", MACHINE)


def test_a_median_that_is_no_time_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a file of pytest-benchmark"):
        read_run(write_run(tmp_path / "run.json", one=(float("nan"), 0.0)), MACHINE)


def test_a_broken_baseline_is_refused_and_a_missing_one_is_none(tmp_path: Path) -> None:
    assert read_baseline(tmp_path / "none.json") is None
    (tmp_path / "broken.json").write_text('{"rows": {}, "extra": 1}')
    with pytest.raises(InputError, match="not a baseline"):
        read_baseline(tmp_path / "broken.json")


def test_the_command_says_in_lines_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert baseline.main([str(tmp_path / "missing.json")]) == 2
    assert capsys.readouterr().err.startswith("cannot read: No such file")


def test_committed_baselines_are_of_the_class_they_are_named_after() -> None:
    for file in (Path(__file__).parents[2] / baseline.FOLDER).glob("*.json"):
        assert Baseline.model_validate_json(file.read_bytes()).machine.name == file.stem
