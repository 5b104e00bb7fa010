"""Every format of tegrastats' lines gives the same rails, temperatures and clocks that a person reads in it."""

import os
import stat
from pathlib import Path

import pytest

from edgevlm.targets.sensors.base import Reading, SensorError
from edgevlm.targets.sensors.rails import total_rails
from edgevlm.targets.sensors.tegrastats import Tegrastats, parse_line

JETPACK_6 = (
    "04-19-2026 01:31:10 RAM 519/7607MB (lfb 61x4MB) SWAP 0/3803MB (cached 0MB) CPU [0%@1728,3%@1510,0%@1728,off] "
    "EMC_FREQ 0%@3199 GR3D_FREQ 0%@[1018] NVDEC off NVJPG off VIC off OFA off APE 200 cpu@48.906C soc2@47.8C "
    "cv0@-256C gpu@49.593C tj@49.593C VDD_IN 5971mW/5971mW VDD_CPU_GPU_CV 1669mW/1669mW VDD_SOC 2308mW/2308mW"
)
UNPRIVILEGED = "RAM 519/7607MB (lfb 61x4MB) CPU [0%@1728,0%@1728] GR3D_FREQ 0% cpu@48.906C VDD_IN 5971mW/5960mW"
JETPACK_7_2 = (
    "RAM 4519/62841MB (lfb 61x4MB) CPU [1%@2201,0%@729] EMC_FREQ 1%@3199 GR3D_FREQ 12%@[1300,1305] "
    "cpu@52.968C/52.968C tj@53.5C/54.5C VDD_GPU_SOC 5139mW/5139mW/5139mW VDD_CPU_CV 1200mW/1100mW/1300mW "
    "VIN_SYS_5V0 4200mW/4100mW/4300mW VDDQ_VDD2_1V8AO 900mW/900mW/900mW"
)
THOR = "RAM 5000/125772MB (lfb 61x4MB) CPU [1%@2601] GR3D_FREQ @[1000,1000,1575] gpu@41.2C VIN 31000mW/30500mW/30800mW"
JETPACK_4 = (
    "RAM 3276/7859MB (lfb 5x4MB) IRAM 0/252kB(lfb 252kB) CPU [44%@1421,49%@2031] EMC_FREQ 1%@1866 GR3D_FREQ 0%@114 "
    "APE 150 MTS fg 1% bg 1% PLL@42.5C PMIC@100C GPU@39.5C thermal@41.3C POM_5V_IN 5297/5301 POM_5V_GPU 182/182"
)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            JETPACK_6,
            Reading(
                watts={"VDD_IN": 5.971, "VDD_CPU_GPU_CV": 1.669, "VDD_SOC": 2.308},
                celsius={"cpu": 48.906, "soc2": 47.8, "gpu": 49.593, "tj": 49.593},
                megahertz={"memory": 3199, "gpu": 1018, "cpu": 1728},
            ),
        ),
        (
            UNPRIVILEGED,
            Reading(watts={"VDD_IN": 5.971}, celsius={"cpu": 48.906}, megahertz={"cpu": 1728}),
        ),
        (
            JETPACK_7_2,
            Reading(
                watts={"VDD_GPU_SOC": 5.139, "VDD_CPU_CV": 1.2, "VIN_SYS_5V0": 4.2, "VDDQ_VDD2_1V8AO": 0.9},
                celsius={"cpu": 52.968, "tj": 53.5},
                megahertz={"memory": 3199, "gpu": 1305, "cpu": 2201},
            ),
        ),
        (THOR, Reading(watts={"VIN": 31.0}, celsius={"gpu": 41.2}, megahertz={"gpu": 1575, "cpu": 2601})),
        (
            JETPACK_4,
            Reading(
                watts={"POM_5V_IN": 5.297, "POM_5V_GPU": 0.182},
                celsius={"PLL": 42.5, "GPU": 39.5, "thermal": 41.3},
                megahertz={"memory": 1866, "gpu": 114, "cpu": 2031},
            ),
        ),
        ("", Reading()),
        ("tegrastats: command failed", Reading()),
    ],
)
def test_line_is_read_as_it_stands(line: str, expected: Reading) -> None:
    assert parse_line(line) == expected


@pytest.mark.parametrize(
    ("line", "total"),
    [
        (JETPACK_6, ("VDD_IN",)),
        (JETPACK_7_2, ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0")),
        (JETPACK_4, ("POM_5V_IN",)),
        (THOR, ("VIN",)),
        ("GPU 0/0 CPU 310/310 SOC 930/930 CV 0/0 VDDRQ 155/155 SYS5V 1443/1443", None),
        ("VDD_NEW 5mW/5mW VDD_OTHER 5mW/5mW", ()),
    ],
)
def test_rails_of_each_board_add_up_by_its_own_rule(line: str, total: tuple[str, ...] | None) -> None:
    """Parts of the input are not counted twice, and rails that no rule knows are not added up."""
    rails = parse_line(line).watts
    assert total_rails(rails) == (tuple(rails) if total is None else total)


def fake(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put a program called tegrastats first in the path."""
    program = folder / "tegrastats"
    program.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_program_that_ends_ends_the_reading_with_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    later = JETPACK_6.replace("VDD_IN 5971mW", "VDD_IN 7000mW")
    fake(tmp_path, monkeypatch, f"echo '{JETPACK_6}'; read x < {gate}; printf '%s\\n%s\\n' '{JETPACK_6}' '{later}'")
    source = Tegrastats()
    assert source.about.total == ("VDD_IN",)
    gate.write_text("go\n", encoding="utf-8")
    assert source.sample().watts["VDD_IN"] == 7.0
    with pytest.raises(SensorError, match="tegrastats has ended"):
        source.sample()
    source.close()


def test_lines_without_power_are_told_and_the_program_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(tmp_path, monkeypatch, "echo 'RAM 519/7607MB CPU [0%@1728]'; exec cat /dev/zero")
    with pytest.raises(SensorError, match="no power rails") as raised:
        Tegrastats()
    assert raised.value.state == "forbidden"


def test_absent_program_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SensorError, match="not installed") as raised:
        Tegrastats()
    assert raised.value.state == "absent"
