"""The wheel holds one top-level package; whoever installs it gets every folder, the data, and no tests."""

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LINKED = ("exporters", "quant", "runtimes", "targets", "bench")


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory: pytest.TempPathFactory) -> Iterator[set[str]]:
    """Paths inside the wheel built from a copy of the sources."""
    source = tmp_path_factory.mktemp("wheel") / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("edgevlm", "tests", *LINKED):
        shutil.copytree(
            ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", "node_modules")
        )
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(source.parent), str(source)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout[-2000:] + built.stderr[-2000:]
    (wheel,) = source.parent.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        yield set(archive.namelist())


def test_top_level_is_one_package(wheel_names: set[str]) -> None:
    tops = {name.split("/")[0] for name in wheel_names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"edgevlm"}
    assert len(tops) == 2


@pytest.mark.parametrize("folder", ["edgevlm", *(f"edgevlm/{name}" for name in LINKED)])
def test_every_module_and_data_file_is_inside(wheel_names: set[str], folder: str) -> None:
    files = {path.relative_to(ROOT) for path in (ROOT / folder).rglob("*") if path.is_file()}
    wanted = {path.as_posix() for path in files if "__pycache__" not in path.parts}
    assert f"{folder}/__init__.py" in wanted
    assert wanted <= wheel_names, sorted(wanted - wheel_names)


def test_the_digits_are_inside(wheel_names: set[str]) -> None:
    assert "edgevlm/zoo/data/digits.npz" in wheel_names


def test_no_tests_inside(wheel_names: set[str]) -> None:
    assert not [name for name in wheel_names if "tests" in name.split("/")]
