"""`auto` measures, remembers, and survives engines that crash; names that cannot work are refused with what to do."""

from pathlib import Path
from typing import Any

import pytest

from edgevlm.bundle import Bundle
from edgevlm.child import ChildError, ChildResult
from edgevlm.errors import EngineError, InputError
from edgevlm.runtimes import memory, open_decoder, open_vision, select
from edgevlm.runtimes.base import EngineOptions
from edgevlm.runtimes.onnxruntime import OnnxRuntimeVision
from edgevlm.runtimes.openvino import OpenVinoVision

OPTIONS = EngineOptions(threads=1, context_length=64)


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


class Children:
    """Stands for the child processes: what each engine's measurement gives."""

    def __init__(self, **results: Any) -> None:
        self.results = results
        self.started: list[str] = []

    def __call__(self, target: str, arguments: dict[str, Any], **_: Any) -> ChildResult:
        assert target == "edgevlm.runtimes.select:measure_vision"
        self.started.append(arguments["name"])
        result = self.results[arguments["name"]]
        if isinstance(result, Exception):
            raise result
        return ChildResult(result, 0)


CRASH = ChildError("the process crashed with SIGSEGV", "", "", "crashed", "", "SIGSEGV")
FAST, SLOW = {"ms": 1.0, "mean": [1.0, 2.0]}, {"ms": 9.0, "mean": [1.0, 2.0]}
WRONG = {"ms": 0.1, "mean": [2.0, -1.0]}
CASES = [
    ({"openvino": FAST, "onnxruntime": SLOW}, OpenVinoVision),
    ({"openvino": SLOW, "onnxruntime": FAST}, OnnxRuntimeVision),
    ({"openvino": CRASH, "onnxruntime": SLOW}, OnnxRuntimeVision),
    ({"openvino": SLOW, "onnxruntime": CRASH}, OpenVinoVision),
    ({"openvino": WRONG, "onnxruntime": SLOW}, OnnxRuntimeVision),
]


@pytest.mark.parametrize(("results", "expected"), CASES)
def test_auto_takes_the_fastest_that_works_and_agrees(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, results: dict[str, Any], expected: type
) -> None:
    monkeypatch.setattr(select, "run_child", Children(**results))
    assert isinstance(open_vision(bundle, "auto", OPTIONS), expected)


def test_auto_measures_once(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    children = Children(openvino=SLOW, onnxruntime=FAST)
    monkeypatch.setattr(select, "run_child", children)
    for _ in range(2):
        assert isinstance(open_vision(bundle, "auto", OPTIONS), OnnxRuntimeVision)
    assert children.started == ["openvino", "onnxruntime"]
    open_vision(bundle, "auto", EngineOptions(threads=2))
    assert len(children.started) == 4, "another number of threads is another question"


def test_auto_says_when_nothing_works(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(select, "run_child", Children(openvino=CRASH, onnxruntime=CRASH))
    with pytest.raises(EngineError, match="no vision engine works"):
        open_vision(bundle, "auto", OPTIONS)


def test_a_named_engine_is_not_measured(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(select, "run_child", lambda *_, **__: pytest.fail("measured"))
    assert isinstance(open_vision(bundle, "openvino", OPTIONS), OpenVinoVision)
    assert isinstance(open_vision(bundle, "onnxruntime", OPTIONS), OnnxRuntimeVision)


def test_a_single_engine_is_not_measured(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(select, "run_child", lambda *_, **__: pytest.fail("measured"))
    monkeypatch.setattr(select, "VISION_ENGINES", {"onnxruntime": select.VISION_ENGINES["onnxruntime"]})
    assert isinstance(open_vision(bundle, "auto", OPTIONS), OnnxRuntimeVision)


def test_the_measurement_itself(bundle: Bundle) -> None:
    results = {
        name: select.measure_vision(lambda _: None, str(bundle.path), name, 1, "cpu")
        for name in ("openvino", "onnxruntime")
    }
    assert all(result["ms"] > 0 for result in results.values())
    assert results["openvino"]["mean"] == pytest.approx(results["onnxruntime"]["mean"], abs=0.02)


def test_auto_decoder_is_the_bundles(bundle: Bundle) -> None:
    assert open_decoder(bundle, "auto", OPTIONS).stats().name.startswith("onnxruntime")


@pytest.mark.parametrize(("name", "message"), [("nonsense", "no vision engine 'nonsense'"), ("llama_cpp", "llama_cpp")])
def test_unknown_engines_are_refused(bundle: Bundle, name: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        open_vision(bundle, name, OPTIONS)
    assert "openvino" in caught.value.hint


def test_an_engine_for_another_format_is_refused(bundle: Bundle) -> None:
    with pytest.raises(InputError, match="not in a format"):
        open_decoder(bundle, "llama_cpp", OPTIONS)


def test_a_missing_package_is_named(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    for name in ("auto", "openvino"):
        with pytest.raises(InputError, match="installed") as caught:
            open_vision(bundle, name, OPTIONS)
        assert caught.value.hint == "pip install 'edgevlm[onnx]'"


def test_memory_survives_damage(tmp_path: Path) -> None:
    memory.remember("a", "1")
    assert memory.recall("a") == "1"
    file = memory.cache_folder() / "engines.json"
    assert file.is_relative_to(tmp_path)
    for content in ("", "[1]", '{"a": 3}', "\xff"):
        file.write_text(content, encoding="latin-1")
        assert memory.recall("a") is None
    memory.remember("b", "2")
    assert memory.recall("b") == "2"


def test_memory_that_cannot_be_written_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    memory.remember("a", "1")
    assert memory.recall("a") is None
    monkeypatch.delenv("XDG_CACHE_HOME")

    def homeless() -> Path:
        raise RuntimeError("no home folder")

    monkeypatch.setattr(Path, "home", homeless)
    memory.remember("a", "1")
    assert memory.recall("a") is None


def test_keys_differ_by_every_part() -> None:
    assert len({memory.key("a", "b"), memory.key("ab"), memory.key("a", "c"), memory.key("b", "a")}) == 4
