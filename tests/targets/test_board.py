"""A Jetson is known by its files and nvpmodel, a card by NVML; both are made up here."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from edgevlm.targets.board import Gpu, find_gpus, find_jetson

NANO = "nvidia,p3768-0000+p3767-0005-super\0nvidia,p3767-0005\0nvidia,tegra234\0"
MODEL = "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0"
RELEASE = "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n"
SUPER, LIMITED = "NV Power Mode: MAXN_SUPER\n2\n", "NV Power Mode: 15W\n0\n"


def tree(root: Path, compatible: str = NANO, max_hz: int | None = 1020000000) -> Path:
    """The files of a Jetson below `root`."""
    files = {
        "proc/device-tree/compatible": compatible,
        "proc/device-tree/model": MODEL,
        "proc/meminfo": "MemTotal:        7789568 kB\nMemFree: 1 kB\n",
        "etc/nv_tegra_release": RELEASE,
    }
    if max_hz is not None:
        files["sys/class/devfreq/17000000.gpu/max_freq"] = f"{max_hz}\n"
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content, encoding="utf-8")
    return root


def test_a_board_tells_its_system_and_mode(tmp_path: Path) -> None:
    board = find_jetson(tree(tmp_path), lambda: SUPER)
    assert board is not None
    assert board.model == MODEL.strip("\0") and "nvidia,p3767-0005" in board.compatible
    assert (board.l4t, board.jetpack) == ("36.4.3", "6.2")
    assert (board.mode, board.mode_id, board.max_gpu_mhz) == ("MAXN_SUPER", 2, 1020.0)
    assert board.memory_bytes == 7789568 * 1024


@pytest.mark.parametrize(
    ("max_hz", "mode", "target"),
    [
        (1020000000, SUPER, "jetson-orin-nano-super"),
        (624750000, LIMITED, "jetson-orin-nano"),
        (408000000, LIMITED, "jetson-orin-nano"),
        (None, SUPER, "jetson-orin-nano-super"),
        (None, LIMITED, "jetson-orin-nano"),
        (None, "", "jetson-orin-nano"),
    ],
)
def test_the_power_mode_decides_the_profile(tmp_path: Path, max_hz: int | None, mode: str, target: str) -> None:
    board = find_jetson(tree(tmp_path, max_hz=max_hz), lambda: mode)
    assert board is not None and board.target == target


@pytest.mark.parametrize(
    ("compatible", "target"),
    [
        ("nvidia,p3737-0000+p3701-0005\0nvidia,p3701-0005\0nvidia,tegra234\0", "jetson-agx-orin-64gb"),
        ("nvidia,p3834-0008\0nvidia,tegra264\0", "jetson-agx-thor"),
        ("nvidia,p9999-0000\0nvidia,tegra234\0", None),
    ],
)
def test_boards_are_told_by_their_ids(tmp_path: Path, compatible: str, target: str | None) -> None:
    board = find_jetson(tree(tmp_path, compatible, None), lambda: "")
    assert board is not None and board.target == target


def test_other_machines_are_no_jetson(tmp_path: Path) -> None:
    assert find_jetson(tmp_path, lambda: SUPER) is None
    assert find_jetson(tree(tmp_path, "raspberrypi,5-model-b\0brcm,bcm2712\0"), lambda: SUPER) is None


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("NVIDIA GeForce RTX 5070", "rtx-5070"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA RTX 6000 Ada Generation", None),
    ],
)
def test_a_card_is_known_by_its_name(name: str, target: str | None) -> None:
    assert Gpu(name, 1, (8, 9), "580", 2000).target == target


class _Error(Exception):
    """NVML's."""


def _nvml(count: int, fails: bool = False) -> SimpleNamespace:
    def init() -> None:
        if fails:
            raise _Error("no driver")

    return SimpleNamespace(
        NVMLError=_Error,
        NVML_CLOCK_SM=1,
        nvmlInit=init,
        nvmlShutdown=lambda: None,
        nvmlSystemGetDriverVersion=lambda: "580.82",
        nvmlDeviceGetCount=lambda: count,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetCudaComputeCapability=lambda _handle: (9, 0),
        nvmlDeviceGetName=lambda _handle: "NVIDIA H200",
        nvmlDeviceGetMemoryInfo=lambda _handle: SimpleNamespace(total=150754820096),
        nvmlDeviceGetMaxClockInfo=lambda _handle, _clock: 1980,
    )


def test_cards_are_read_through_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", _nvml(2))
    assert find_gpus() == [Gpu("NVIDIA H200", 150754820096, (9, 0), "580.82", 1980)] * 2


def test_no_driver_is_no_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", _nvml(1, fails=True))
    assert find_gpus() == []
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert find_gpus() == []
