"""The device half runs without the libraries of the host half: on the device they are not installed."""

import json
import subprocess
import sys

import pytest
from house import HOST_HALF, HOST_LIBRARIES, below, modules

_SCRIPT = """
import importlib, importlib.abc, json, sys, traceback

blocked, names = json.loads(sys.argv[1])

class Wall(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in blocked:
            raise ImportError(f"{name} is behind the wall")

sys.meta_path.insert(0, Wall())
failures = {}
for name in names:
    try:
        importlib.import_module(name)
    except Exception as error:
        failures[name] = traceback.format_exc(limit=-2)
print(json.dumps([failures, sorted(set(blocked) & set(sys.modules))]))
"""


def _import_behind_wall(names: list[str], blocked: tuple[str, ...] = HOST_LIBRARIES) -> dict[str, str]:
    """Import modules in a fresh interpreter without the host libraries; return the failures."""
    command = [sys.executable, "-c", _SCRIPT, json.dumps([blocked, names])]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    failures, leaked = json.loads(result.stdout.splitlines()[-1])
    assert not leaked
    assert isinstance(failures, dict)
    return failures


def _device_half() -> list[str]:
    return [name for name in modules() if not any(below(name, prefix) for prefix in HOST_HALF)]


def test_device_half_imports_without_host_libraries() -> None:
    names = _device_half()
    assert {"edgevlm", "edgevlm.bundle", "edgevlm.session", "edgevlm.zoo.scenes", "edgevlm.cli.run"} <= set(names)
    assert _import_behind_wall(names) == {}


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino", "llama_cpp"])
def test_each_engine_is_optional(engine: str) -> None:
    """A device has one runtime; the others' absence shows only when they are asked for."""
    assert _import_behind_wall(["edgevlm", "edgevlm.session", "edgevlm.cli.doctor"], (*HOST_LIBRARIES, engine)) == {}


def test_the_wall_stands() -> None:
    """The check itself fails where a module does need torch."""
    assert set(_import_behind_wall(["edgevlm.models.decoder"])) == {"edgevlm.models.decoder"}
