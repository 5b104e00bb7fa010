"""The llama.cpp wheel is built once per machine and kept; a failed build is loud and leaves nothing behind.

Python and its pip are a shell script here that records what it is asked and does it in no time.
"""

import importlib.util
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "llama_wheel.py"
FAKE_PYTHON = """#!/bin/sh
echo "$@" >> "{home}/calls"
case "$*" in
  *"pip wheel"*)
    echo "CMAKE_ARGS=$CMAKE_ARGS" >> "{home}/calls"
    if [ -e "{home}/broken" ]; then echo "the compiler said no"; exit 1; fi
    while [ "$1" != --wheel-dir ]; do shift; done
    echo wheel > "$2/llama_cpp_python-1.2.3-py3-none-any.whl" ;;
  *"pip "*install*) for last; do :; done; echo "$last" > "{home}/installed" ;;
  *) cat "{home}/installed" 2>/dev/null ;;
esac
"""


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("llama_wheel", TOOL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Machine:
    """A home with a cache, a constraints file and virtual environments whose Python is the script above."""

    def __init__(self, tool: ModuleType, home: Path) -> None:
        self.tool, self.home = tool, home
        self.constraints = home / "constraints.txt"
        self.constraints.write_text("numpy==2\nllama-cpp-python==1.2.3\n")
        self.venv = self.make_venv("venv")

    def make_venv(self, name: str) -> Path:
        venv = self.home / name
        (venv / "bin").mkdir(parents=True)
        python = venv / "bin" / "python"
        python.write_text(FAKE_PYTHON.format(home=venv))
        python.chmod(0o755)
        return venv

    def run(self, venv: Path | None = None) -> int:
        arguments = ["--venv", str(venv or self.venv), "--constraints", str(self.constraints)]
        code = self.tool.main(arguments)
        assert isinstance(code, int)
        return code

    def calls(self, venv: Path | None = None) -> str:
        return ((venv or self.venv) / "calls").read_text()

    def wheels(self) -> list[Path]:
        return sorted((self.home / "cache").rglob("*.whl"))


@pytest.fixture
def machine(tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Machine(tool, tmp_path)


def test_wheel_is_built_with_the_flags_kept_and_installed(machine: Machine) -> None:
    assert machine.run() == 0
    assert "CMAKE_ARGS=-DGGML_NATIVE=ON -DCMAKE_CXX_FLAGS=-fno-dse" in machine.calls()
    assert "llama-cpp-python==1.2.3" in machine.calls()
    (wheel,) = machine.wheels()
    assert (machine.venv / "installed").read_text().strip() == str(wheel)


def test_second_environment_takes_the_kept_wheel(machine: Machine) -> None:
    machine.run()
    other = machine.make_venv("other")
    assert machine.run(other) == 0
    assert "pip wheel" not in machine.calls(other)
    assert "install" in machine.calls(other)


def test_installed_wheel_is_left_alone(machine: Machine) -> None:
    machine.run()
    before = machine.calls().count("pip")
    assert machine.run() == 0
    assert machine.calls().count("pip") == before


def test_another_build_of_the_same_version_is_replaced(machine: Machine) -> None:
    (machine.venv / "installed").write_text("file:///elsewhere/llama_cpp_python-1.2.3-py3-none-any.whl")
    machine.run()
    assert "--force-reinstall" in machine.calls()


@pytest.mark.parametrize(("name", "value"), [("compiler_version", "cc 13"), ("cpu_features", "x86_64 amx_tile")])
def test_other_compiler_or_cpu_gets_its_own_wheel(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    machine.run()
    monkeypatch.setattr(machine.tool, name, lambda: value)
    machine.run()
    assert len(machine.wheels()) == 2


def test_failed_build_shows_the_logs_end_and_keeps_nothing(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    (machine.venv / "broken").touch()
    assert machine.run() == 1
    assert "the compiler said no" in capsys.readouterr().err
    assert not machine.wheels()
    (machine.venv / "broken").unlink()
    assert machine.run() == 0


def test_two_builds_at_once_leave_one_whole_wheel(machine: Machine) -> None:
    venvs = [machine.make_venv(f"venv{index}") for index in range(4)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(machine.run, venvs)) == [0] * 4
    (wheel,) = machine.wheels()
    assert wheel.read_text() == "wheel\n"
    assert not list((machine.home / "cache").rglob(".new-*"))


def test_missing_compiler_is_said_before_anything_is_built(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert machine.run() == 1
    assert "install one" in capsys.readouterr().err
    assert not (machine.venv / "calls").exists()


def test_version_must_be_pinned(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.constraints.write_text("llama-cpp-python>=1\n")
    assert machine.run() == 1
    assert "llama-cpp-python==VERSION" in capsys.readouterr().err


def test_it_needs_nothing_but_the_standard_library() -> None:
    result = subprocess.run(
        [sys.executable, "-I", "-S", str(TOOL), "--help"], capture_output=True, text=True, check=True
    )
    assert "--constraints" in result.stdout
