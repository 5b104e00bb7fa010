"""Engines are built into a bundle without a GPU, whole or not at all, and only what is missing is built again."""

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from refusals import Refused, left_in, refusal
from trt_bundles import PACKED_BYTES, int4_bundle

from edgevlm.bundle import open_bundle
from edgevlm.child import ChildError
from edgevlm.errors import BundleError, EngineError, InputError, UnsupportedError
from edgevlm.runtimes.build_plan import read_build_plan
from edgevlm.runtimes.trt import build
from edgevlm.runtimes.trt.build import build_engines, place_for, workspace
from edgevlm.runtimes.trt.cards import Place, bundle_cards, find_engine
from edgevlm.runtimes.trt.library import Gpu, l4t_release, numeric_version
from edgevlm.targets.catalog import load_target

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx is not installed: pip install 'edgevlm[rtx]'"
)
ORIN = Place("tensorrt", "10.3.0", (8, 7), "36.4.3")


def _silent(done: float, total: float, what: str) -> None:
    del done, total, what


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with an engine for SM 8.6."""
    folder = int4_bundle(tmp_path_factory.mktemp("built") / "bundle")
    build_engines(folder, "rtx-3060", progress=_silent)
    return folder


@pytest.fixture
def bundle(built: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(built, tmp_path / "bundle"))


def _engine(bundle: Path) -> Path:
    (engine,) = bundle.glob("tensorrt/*/vision.engine")
    return engine


def _here(**changes: Any) -> Place:
    """Where the engine of `bundle` runs, with changes."""
    import tensorrt_rtx

    place = {"library": "tensorrt_rtx", "version": tensorrt_rtx.__version__, "compute_capability": (8, 6), **changes}
    return Place(**place)


def _find(folder: Path, *places: Place) -> Path:
    bundle = open_bundle(folder)
    return find_engine(bundle, read_build_plan(folder / "build_plan.json").components[0], list(places))[0]


@needs_rtx
def test_an_engine_for_another_card_is_built_without_a_gpu(bundle: Path) -> None:
    """INT4 weights stay INT4: widened to half precision they alone would take 256 KB, in float32 512 KB."""
    opened = open_bundle(bundle, verify=True)
    (card,) = bundle_cards(opened).values()
    assert card.place == _here()
    assert _find(bundle, _here()) == _engine(bundle)
    assert PACKED_BYTES < card.bytes == _engine(bundle).stat().st_size


@needs_rtx
def test_what_is_current_is_not_built_again(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = _engine(bundle).stat().st_mtime_ns
    monkeypatch.setattr(build, "run_child", _never)
    (engine,) = build_engines(bundle, "rtx-3060", progress=_silent)
    assert engine.reused
    assert _engine(bundle).stat().st_mtime_ns == before


def _never(*arguments: object, **options: object) -> None:
    raise AssertionError(f"built again: {arguments} {options}")


@needs_rtx
@pytest.mark.parametrize("spoil", ["cut", "missing", "altered"])
def test_a_damaged_engine_is_refused_and_can_be_built_again(bundle: Path, spoil: str) -> None:
    engine = _engine(bundle)
    whole = engine.read_bytes()
    if spoil == "cut":
        engine.write_bytes(whole[:1000])
    elif spoil == "missing":
        engine.unlink()
    else:
        engine.write_bytes(b"\0" + whole[1:])
    with pytest.raises(BundleError) as caught:
        open_bundle(bundle, verify=True)
    assert "edgevlm build" in caught.value.hint
    (again,) = build_engines(bundle, "rtx-3060", progress=_silent)
    assert not again.reused
    assert _find(bundle, _here()) == engine
    open_bundle(bundle, verify=True)


@needs_rtx
def test_a_cut_engine_that_the_manifest_agrees_with_is_refused_by_its_card(bundle: Path) -> None:
    engine = _engine(bundle)
    engine.write_bytes(engine.read_bytes()[:1000])
    manifest = json.loads((bundle / "manifest.json").read_text())
    for entry in manifest["artifacts"]:
        if entry["path"].endswith(".engine"):
            entry["bytes"] = 1000
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="cut short"):
        _find(bundle, _here())


@needs_rtx
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"compute_capability": (8, 9)}, r"built for tensorrt_rtx .*, SM 8\.6; here is .*, SM 8\.9"),
        ({"version": "1.8.0"}, r"here is tensorrt_rtx 1\.8\.0"),
        ({"library": "tensorrt", "l4t": "36.4.3"}, r"on L4T 36\.4\.3"),
    ],
)
def test_an_engine_for_something_else_is_refused(bundle: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(EngineError, match=said):
        _find(bundle, _here(**changes))


@needs_rtx
def test_an_engine_of_other_graphs_is_refused_and_built_again(bundle: Path) -> None:
    card = _engine(bundle).with_suffix(".json")
    altered = json.loads(card.read_text())
    altered["sources"]["onnx/vision_encoder.onnx"] = "0" * 64
    text = json.dumps(altered)
    manifest = json.loads((bundle / "manifest.json").read_text())
    for entry in manifest["artifacts"]:
        if entry["role"] == "engine":
            entry["bytes"] = len(text)
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    card.write_text(text)
    with pytest.raises(EngineError, match="other graphs"):
        _find(bundle, _here())
    (again,) = build_engines(bundle, "rtx-3060", progress=_silent)
    assert not again.reused


@needs_rtx
def test_an_interrupted_rebuild_leaves_a_bundle_that_opens(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The manifest names no engine while it is being replaced, and a half-written one has no name."""

    def crash(target: str, arguments: dict[str, Any], **options: object) -> None:
        del target, options
        Path(arguments["out"]).write_bytes(b"half")
        raise ChildError("the process was killed", "builder", "", "crashed")

    monkeypatch.setattr(build, "run_child", crash)
    with pytest.raises(ChildError):
        build_engines(bundle, "rtx-3060", rebuild=True, progress=_silent)
    opened = open_bundle(bundle, verify=True)
    assert not bundle_cards(opened)
    left_in(_engine(bundle).parent, "vision.engine", "vision.json")
    monkeypatch.undo()
    # The old engine is whole and current: nothing has to be built.
    (engine,) = build_engines(bundle, "rtx-3060", progress=_silent)
    assert engine.reused
    assert bundle_cards(open_bundle(bundle))


@needs_rtx
def test_engines_for_two_cards_live_side_by_side(bundle: Path) -> None:
    build_engines(bundle, "rtx-4060", progress=_silent)
    assert {card.compute_capability for card in bundle_cards(open_bundle(bundle)).values()} == {"8.6", "8.9"}


@needs_rtx
def test_what_the_parser_refuses_is_named(bundle: Path) -> None:
    """A graph that TensorRT cannot read costs three lines and leaves the bundle as it was."""
    import onnx

    model = onnx.load_model(str(bundle / "onnx/vision_encoder.onnx"))
    model.graph.node[2].op_type = "Telepathy"
    data = model.SerializeToString()
    (bundle / "onnx/vision_encoder.onnx").write_bytes(data)
    _fix_entry(bundle, "onnx/vision_encoder.onnx", data)
    with pytest.raises(EngineError, match="Telepathy"):
        build_engines(bundle, "rtx-5060", progress=_silent)
    assert not list(bundle.glob("tensorrt/*sm120/*"))


def _fix_entry(bundle: Path, path: str, data: bytes) -> None:
    from hashlib import sha256

    manifest = json.loads((bundle / "manifest.json").read_text())
    for entry in manifest["artifacts"]:
        if entry["path"] == path:
            entry |= {"bytes": len(data), "sha256": sha256(data).hexdigest()}
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def test_a_jetson_builds_its_engines_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its library, without a GPU, and with another GPU; with its own, the place names the L4T release."""
    orin = load_target("jetson-orin-nano")
    monkeypatch.setattr(build, "installed", lambda _: False)
    with pytest.raises(InputError, match="TensorRT is not here"):
        place_for(orin)
    monkeypatch.setattr(build, "installed", lambda _: True)
    monkeypatch.setattr(build, "find_gpu", lambda: None)
    with pytest.raises(InputError, match="no GPU here"):
        place_for(orin)
    monkeypatch.setattr(build, "find_gpu", lambda: Gpu("NVIDIA H200", (9, 0), 1 << 37))
    with pytest.raises(InputError, match=r"NVIDIA H200 here 9\.0"):
        place_for(orin)
    monkeypatch.setattr(build, "find_gpu", lambda: Gpu("Orin", (8, 7), 1 << 33))
    monkeypatch.setattr(build, "library_version", lambda _: "10.3.0")
    monkeypatch.setattr(build, "l4t_release", lambda: "36.4.3")
    assert place_for(orin) == ORIN
    assert ORIN.folder == "tensorrt/tensorrt-10.3.0-sm87-l4t36.4.3"
    with pytest.raises(UnsupportedError, match="no TensorRT"):
        place_for(load_target("raspberry-pi-5"))


def test_graphs_for_a_newer_version_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = int4_bundle(tmp_path / "bundle", tensorrt="10.15")
    monkeypatch.setattr(build, "place_for", lambda _: ORIN)
    with pytest.raises(UnsupportedError, match=r"written for TensorRT 10\.15, here is 10\.3\.0"):
        build_engines(folder, "jetson-orin-nano", progress=_silent)


def test_a_model_larger_than_the_board_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = int4_bundle(tmp_path / "bundle", weight_bytes=10**10)
    monkeypatch.setattr(build, "place_for", _never)
    with pytest.raises(InputError, match=r"short by \d+\.\d GB"):
        build_engines(folder, "jetson-orin-nano", progress=_silent)
    with pytest.raises(AssertionError, match="built again"):
        build_engines(folder, "jetson-orin-nano", force=True, progress=_silent)


def test_the_workspace_leaves_room_for_weights() -> None:
    """An 8 GB board that shares its memory gets a smaller one, never less than the least."""
    import trt_bundles

    component = trt_bundles._component(weight_bytes=1 << 30)
    assert workspace(component, 64 << 30) == component.workspace_bytes
    assert workspace(component, (2 << 30) + (640 << 20)) == 128 << 20
    assert workspace(component, 1 << 30) == 64 << 20


def test_the_release_of_l4t_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgevlm.runtimes.trt import library

    file = tmp_path / "nv_tegra_release"
    file.write_text("# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n")
    monkeypatch.setattr(library, "L4T_RELEASE", file)
    assert l4t_release() == "36.4.3"
    monkeypatch.setattr(library, "L4T_RELEASE", tmp_path / "absent")
    assert l4t_release() == ""
    assert numeric_version("10.3.0.26+cuda12") == (10, 3, 0, 26)


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    return refusal(capsys)


def test_bad_input_of_the_command(refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = int4_bundle(tmp_path / "bundle")
    monkeypatch.setattr(build, "installed", lambda _: False)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert "jetson-orin-nano" in refused("build", folder, "--target", "jetson-orin-nona")[2]
    assert "built on it" in refused("build", folder, "--target", "jetson-orin-nano")[0]
    assert "no TensorRT" in refused("build", folder, "--target", "intel-n100")[0]
    (folder / "build_plan.json").write_bytes(before[folder / "build_plan.json"].replace(b"{", b"[", 1))
    assert "build plan" in refused("build", folder, "--target", "rtx-3060")[0]
    (folder / "build_plan.json").write_bytes(before[folder / "build_plan.json"])
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_bundle_without_graphs_for_tensorrt_is_refused(refused: Refused, tmp_path: Path) -> None:
    folder = int4_bundle(tmp_path / "bundle")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["artifacts"] = [entry for entry in manifest["artifacts"] if entry["role"] != "config"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert "--format tensorrt" in refused("build", folder, "--target", "rtx-3060")[2]
