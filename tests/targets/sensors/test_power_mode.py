"""A Jetson's power mode stands in the report as nvpmodel names it; other machines have none."""

import stat
from pathlib import Path

import pytest

from edgevlm.targets.sensors.power_mode import parse_nvpmodel, power_mode


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("NV Power Mode: MAXN_SUPER\n2\n", "MAXN_SUPER (2)"),
        ("NVPM WARN: fan mode is not set!\nNV Power Mode: 15W\n0\n", "15W (0)"),
        ("NV Power Mode: 120W\n", "120W"),
        ("NVPM ERROR: Failed to get power mode\n", None),
        ("", None),
    ],
)
def test_mode_is_read_as_it_stands(text: str, mode: str | None) -> None:
    assert parse_nvpmodel(text) == mode


def test_mode_is_asked_of_the_board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert power_mode() is None
    program = tmp_path / "nvpmodel"
    program.write_text('#!/bin/sh\ntest "$1" = -q && printf "NV Power Mode: 25W\\n1\\n"\n', encoding="utf-8")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    assert power_mode() == "25W (1)"
