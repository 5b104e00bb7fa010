"""The device half is valid on JetPack 6's Python 3.10: its grammar, and what it takes from the standard library.

Where an interpreter of that version is at hand, it compiles the modules itself and looks each imported name up; where
it also has the device half's libraries, it imports them all.
"""

import ast
import json
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from house import HOST_HALF, below, modules

_LIBRARIES = ("click", "jinja2", "numpy", "PIL", "psutil", "pydantic", "rich", "tokenizers", "yaml")
_COMPILE = """
import importlib, json, sys
problems = []
for path, names in json.load(sys.stdin).items():
    with open(path, encoding="utf-8") as file:
        compile(file.read(), path, "exec")
    for name in names:
        module, _, attribute = name.rpartition(":")
        try:
            if not hasattr(importlib.import_module(module), attribute):
                importlib.import_module(f"{module}.{attribute}")
        except ImportError:
            problems.append(f"{path}: {name}")
print(json.dumps(problems))
"""
_IMPORT = """
import importlib, json, sys
for name in json.load(sys.stdin):
    importlib.import_module(name)
print(json.dumps([]))
"""


def _device_half() -> dict[str, Path]:
    return {name: path for name, path in modules().items() if not any(below(name, prefix) for prefix in HOST_HALF)}


@cache
def _interpreters() -> list[str]:
    """Interpreters of version 3.10: the one that EDGEVLM_PYTHON310 names, on the path, or in pyenv."""
    named = [os.environ.get("EDGEVLM_PYTHON310"), shutil.which("python3.10")]
    found = [*named, *map(str, Path.home().glob(".pyenv/versions/3.10.*/bin/python"))]
    return [path for path in found if path and _answer(path, "import sys; print(sys.version_info[:2])") == "(3, 10)"]


def _answer(python: str, script: str) -> str:
    result = subprocess.run([python, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    return result.stdout.strip()


def _run(python: str, script: str, given: object) -> list[str]:
    """Run a script in another interpreter, with the repository in its path; its last line is a list."""
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(Path(__file__).parent.parent),
        "HOME": str(Path.home()),
    }
    result = subprocess.run(
        [python, "-c", script],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    problems = json.loads(result.stdout.splitlines()[-1])
    assert isinstance(problems, list)
    return problems


def test_the_grammar_is_that_of_310() -> None:
    for path in _device_half().values():
        ast.parse(path.read_text(encoding="utf-8"), str(path), feature_version=(3, 10))


def test_a_newer_grammar_is_noticed() -> None:
    with pytest.raises(SyntaxError):
        ast.parse("try:\n  pass\nexcept* OSError:\n  pass\n", feature_version=(3, 10))


def _from_the_standard_library(path: Path) -> list[str]:
    """`module:name` of each import from the standard library; those that only type checkers see are left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    unseen = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    return [
        f"{node.module}:{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node not in unseen
        for alias in node.names
        if node.module and node.module.split(".")[0] in sys.stdlib_module_names - {"__future__"}
    ]


def test_310_compiles_the_device_half_and_has_what_it_imports() -> None:
    if not _interpreters():
        pytest.skip("there is no Python 3.10 here: name one in EDGEVLM_PYTHON310")
    given = {str(path): _from_the_standard_library(path) for path in _device_half().values()}
    assert any(names for names in given.values())
    assert _run(_interpreters()[0], _COMPILE, given) == []
    assert _run(_interpreters()[0], _COMPILE, {__file__: ["typing:Self"]}), "the check notices what 3.11 brought"


def test_310_imports_the_device_half() -> None:
    script = f"import {', '.join(_LIBRARIES)}; print('all')"
    equipped = [path for path in _interpreters() if _answer(path, script) == "all"]
    if not equipped:
        pytest.skip("no Python 3.10 here has the device half's libraries: name one that has in EDGEVLM_PYTHON310")
    assert _run(equipped[0], _IMPORT, sorted(_device_half())) == []
