"""This machine as a target: measured once, remembered by hardware, written as a profile that can be read again."""

import dataclasses
from pathlib import Path

import pytest

from edgevlm.errors import InputError
from edgevlm.targets import host
from edgevlm.targets.board import Gpu, Jetson
from edgevlm.targets.catalog import load_target
from edgevlm.targets.cpu_speed import CpuSpeed, measure_cpu

SPEED = CpuSpeed(8.0, 12.0, {"fp32": 0.2, "int8": 0.6})


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "edgevlm" / "cpu-speed.json"


def never() -> CpuSpeed:
    raise AssertionError("it was measured again")


def test_the_machine_is_measured_once() -> None:
    first = host.this_machine(lambda: SPEED)
    assert host.this_machine(never) == first
    assert host.find_target("cpu") == first
    assert first.bandwidth.sustained_gb_s is not None
    assert (first.bandwidth.sustained_gb_s.value, first.bandwidth.sustained_gb_s.mark) == (12.0, "measured")
    assert first.kind == "cpu" and first.compute_capability is None


def test_other_hardware_is_measured_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    host.this_machine(lambda: SPEED)
    monkeypatch.setattr(host, "hardware", lambda: "another processor x 64")
    faster = dataclasses.replace(SPEED, read_gb_s=100.0)
    figure = host.this_machine(lambda: faster).bandwidth.sustained_gb_s
    assert figure is not None and figure.value == 100.0


@pytest.mark.parametrize("content", ["", "[]", "{", '{"x": 1}'])
def test_a_damaged_memory_is_measured_again(cache: Path, content: str) -> None:
    host.this_machine(lambda: SPEED)
    cache.write_text(content, encoding="utf-8")
    assert host.this_machine(lambda: SPEED) == host.cpu_profile(SPEED)


def test_impossible_speeds_are_not_believed(cache: Path) -> None:
    host.this_machine(lambda: SPEED)
    cache.write_text(cache.read_text(encoding="utf-8").replace("12.0", "1e9"), encoding="utf-8")
    assert host.this_machine(lambda: SPEED) == host.cpu_profile(SPEED)


def test_a_written_profile_is_a_target(tmp_path: Path) -> None:
    path = tmp_path / "my-board.yaml"
    host.write_profile(host.probed_profile(SPEED, [], None, path.stem), path)
    read = load_target(str(path))
    assert read.name == "my-board" and read.compute == host.cpu_profile(SPEED).compute
    with pytest.raises(InputError, match="file already"):
        host.write_profile(read, path)
    host.write_profile(read, path, force=True)


def test_a_probed_jetson_is_its_profile_with_its_own_memory(tmp_path: Path) -> None:
    board = Jetson(
        "Orin Nano", ("nvidia,p3767-0005",), "36.4.3", "6.2", "25W", 1, 7607 << 20, 918.0, "jetson-orin-nano"
    )
    profile = host.probed_profile(SPEED, [], board, "mine")
    assert profile.compute_capability == (8, 7)
    assert profile.memory.total_gib.mark == "measured" and profile.memory_bytes == pytest.approx(7607 << 20, rel=1e-3)
    host.write_profile(profile, tmp_path / "mine.yaml")
    assert load_target(str(tmp_path / "mine.yaml")) == profile


def test_a_probed_card_is_its_profile() -> None:
    card = Gpu("NVIDIA GeForce RTX 4090", 24 << 30, (8, 9), "580.1", 2520)
    assert host.probed_profile(SPEED, [card], None, "mine").tensorrt == load_target("rtx-4090").tensorrt
    other = dataclasses.replace(card, name="NVIDIA Quadro P400")
    assert host.probed_profile(SPEED, [other], None, "mine").kind == "cpu"


@pytest.mark.parametrize("name", ["board.txt", "board"])
def test_a_profile_needs_its_ending(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"ends in \.yaml"):
        host.check_writable(tmp_path / name, force=False)


def test_a_name_that_cannot_be_a_target_is_refused() -> None:
    with pytest.raises(InputError, match="cannot be written: name"):
        host.probed_profile(SPEED, [], None, "my board")


def test_measuring_gives_possible_figures() -> None:
    """Tiny arrays and matrices: that it runs through, threads, child and all."""
    profile = host.cpu_profile(measure_cpu(array_bytes=1 << 20, side=64))
    assert profile.bandwidth.sustained_gb_s is not None
