"""`edgevlm targets`: every number is shown with its source, and what is written can be given to `--target`."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from click.testing import CliRunner
from refusals import left_in, refusal

from edgevlm.cli import targets as verb
from edgevlm.cli.targets import command
from edgevlm.doctor import Check
from edgevlm.targets.board import Gpu, Jetson
from edgevlm.targets.catalog import load_target, target_names
from edgevlm.targets.cpu_speed import CpuSpeed
from edgevlm.targets.profile import TargetProfile, read_profile

SPEED = CpuSpeed(8.0, 12.0, {"fp32": 0.2, "int8": 0.6})


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SimpleNamespace:
    """A machine that is measured in no time; its cards and board can be set."""
    found = SimpleNamespace(gpus=[], jetson=None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(verb, "measured", lambda: SPEED)
    monkeypatch.setattr(verb, "find_gpus", lambda: found.gpus)
    monkeypatch.setattr(verb, "find_jetson", lambda: found.jetson)
    monkeypatch.setattr("edgevlm.doctor.examine", lambda: [Check("openvino", "ok", "2026")])
    return found


def shown(*arguments: str) -> str:
    result = CliRunner().invoke(command, list(arguments))
    assert result.exit_code == 0, result.output
    return result.output


def test_the_list_names_every_profile_and_this_machine() -> None:
    first = [line.split()[0] for line in shown("list").splitlines()]
    assert [*target_names(), "cpu"] == first[-len(target_names()) - 1 :]
    assert [profile["name"] for profile in json.loads(shown("list", "--json"))] == target_names()


@pytest.mark.parametrize("name", ["jetson-orin-nano-super", "rtx-4090", "raspberry-pi-5"])
def test_a_profile_is_shown_with_every_source(name: str) -> None:
    text = shown("show", name)
    for source in _sources(json.loads(shown("show", name, "--json"))):
        assert " ".join(source.split()) in text


def _sources(data: object) -> set[str]:
    """Every source in a profile but those of power modes, which are shown by their marks."""
    if isinstance(data, dict):
        own = {data["source"]} if "source" in data and "id" not in data else set()
        return own.union(*(_sources(value) for value in data.values()))
    return set().union(*(_sources(value) for value in data)) if isinstance(data, list) else set()


def test_what_is_shown_as_yaml_is_the_profile(tmp_path: Path) -> None:
    for name in ("jetson-orin-nx-16gb", "apple-m", "rtx-5090"):
        path = tmp_path / f"{name}.yaml"
        path.write_text(shown("show", name, "--yaml"), encoding="utf-8")
        assert read_profile(path) == load_target(name)


def test_a_probe_shows_and_writes_what_was_found(machine: SimpleNamespace, tmp_path: Path) -> None:
    machine.gpus = [Gpu("NVIDIA GeForce RTX 4060", 8 << 30, (8, 9), "580.1", 2460)]
    out = tmp_path / "desk.yaml"
    text = shown("probe", "--write", str(out))
    for words in ("12.0 GB/s reading", "0.6 TOPS int8", "RTX 4060", "SM 8.9", "profile rtx-4060", "openvino", str(out)):
        assert words in text
    assert load_target(str(out)).compute_capability == (8, 9)
    data = json.loads(shown("probe", "--json"))
    assert data["cpu"]["triad_gb_s"] == 8.0 and data["gpus"][0]["driver"] == "580.1" and data["jetson"] is None
    assert TargetProfile.model_validate(data["profile"]).name == "cpu"


def test_a_board_is_shown_with_its_mode(machine: SimpleNamespace) -> None:
    machine.jetson = Jetson("Orin NX", ("p3767-0000",), "36.4.3", "6.2", "25W", 3, None, None, "jetson-orin-nx-16gb")
    assert "Orin NX; L4T 36.4.3 (JetPack 6.2); power mode 25W; profile jetson-orin-nx-16gb" in shown("probe")


@pytest.mark.parametrize("taken", [True, False])
def test_a_file_that_cannot_be_written_is_refused_before_measuring(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, taken: bool
) -> None:
    monkeypatch.setattr(verb, "measured", lambda: pytest.fail("it was measured"))
    path = tmp_path / ("board.yaml" if taken else "board.json")
    if taken:
        path.write_text("mine", encoding="utf-8")
    what, where, _ = refusal(capsys)("targets", "probe", "--write", path)
    assert where == str(path) and ("already" in what) == taken
    left_in(tmp_path, *(["board.yaml"] if taken else []))


def test_wrong_profiles_and_names_are_three_lines(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    refused = refusal(capsys)
    assert "rtx-4090" in refused("targets", "show", "rtx 4090")[2]
    data = yaml.safe_load(shown("show", "rtx-4090", "--yaml"))
    del data["bandwidth"]["theoretical_gb_s"]
    path = tmp_path / "card.yaml"
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    what, where, _ = refused("estimate", "zoo:nano-fastvlm", "--target", path)
    assert "bandwidth" in what and where == str(path)
    assert "not a size" in refused("estimate", "zoo:nano-fastvlm", "--image-size", "large")[0]
