"""This machine as a target: its CPU measured, its memory and GPUs looked up.

In: the machine, as it is. Out: a `TargetProfile`. Speeds are measured once and remembered
in the user's cache folder, keyed by hardware; a cache that is missing or damaged is no error.
"""

from __future__ import annotations

import contextlib
import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import psutil
import yaml
from pydantic import ValidationError

from edgevlm.atomic import write_text
from edgevlm.errors import InputError
from edgevlm.longrun import cache_folder
from edgevlm.targets.board import Gpu, Jetson
from edgevlm.targets.catalog import load_target
from edgevlm.targets.cpu_speed import CpuSpeed, measure_cpu, usable_cores
from edgevlm.targets.isa import cpu_features, cpu_model, hardware
from edgevlm.targets.profile import Bandwidth, Compute, Figure, Mark, Memory, TargetProfile
from edgevlm.validation import first_problem

HOST = "cpu"
_FILE = "cpu-speed.json"
_GIB = 1 << 30
_SOURCE = "edgevlm targets probe"
#: What a system without a desktop keeps.
_SYSTEM_GIB = 0.5


def find_target(name: str) -> TargetProfile:
    """A profile by its name, a file, or `cpu` for this machine.

    Raises:
        InputError: there is no such target, or its file is wrong.
    """
    return this_machine() if name == HOST else load_target(name)


def this_machine(measure: Callable[[], CpuSpeed] = measure_cpu) -> TargetProfile:
    """The CPU of this machine; measures for a few seconds where nothing is remembered."""
    return cpu_profile(_recall() or measured(measure))


def measured(measure: Callable[[], CpuSpeed] = measure_cpu) -> CpuSpeed:
    """Measure this machine's CPU anew, and remember it."""
    speed = measure()
    _remember(speed)
    return speed


def probed_profile(speed: CpuSpeed, gpus: Sequence[Gpu], jetson: Jetson | None, name: str) -> TargetProfile:
    """What this machine is best described by: its Jetson's or first known card's profile, or that of its CPU.

    Raises:
        InputError: the name cannot be a target's.
    """
    memory_gib: float | None = None
    if jetson is not None and jetson.target is not None:
        profile, memory_gib = load_target(jetson.target), (jetson.memory_bytes or 0) / _GIB
    elif card := next((gpu for gpu in gpus if gpu.target is not None), None):
        profile, memory_gib = load_target(card.target or ""), card.memory_bytes / _GIB
    else:
        profile = cpu_profile(speed)
    data = profile.model_dump()
    data["name"] = name.lower()
    if memory_gib:
        # The system's count is what firmware leaves.
        reserved = min(_SYSTEM_GIB, memory_gib / 2)
        data["memory"]["total_gib"] = _figure(memory_gib, "measured", "the system's count").model_dump()
        data["memory"]["reserved_gib"] = _figure(reserved, "assumed", "a system without a desktop").model_dump()
    try:
        return TargetProfile.model_validate(data)
    except ValidationError as error:
        _, problem = first_problem(error)
        raise InputError(f"the profile cannot be written: {problem}", name, "choose another file name") from error


def write_profile(profile: TargetProfile, path: Path, *, force: bool = False) -> None:
    """Write a profile as YAML.

    Raises:
        InputError: the file exists (unless `force`), has another ending, or cannot be written.
    """
    check_writable(path, force=force)
    write_text(path, profile_yaml(profile))


def check_writable(path: Path, *, force: bool) -> None:
    """Refuse what `write_profile` would refuse, before anything is measured.

    Raises:
        InputError: the file exists (unless `force`), or has another ending.
    """
    if path.suffix not in (".yaml", ".yml"):
        raise InputError("a target profile's file ends in .yaml", str(path), "such as --write my-board.yaml")
    if path.exists() and not force:
        raise InputError("there is a file already", str(path), "choose another name, or add --force")


def profile_yaml(profile: TargetProfile) -> str:
    """A profile as a file that `read_profile` reads, a number and its source on one line."""
    data = profile.model_dump(mode="json", exclude_defaults=True)
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=10_000, default_flow_style=None)


def cpu_profile(speed: CpuSpeed) -> TargetProfile:
    """The profile of this machine's CPU from what was measured."""
    cores, features = usable_cores(), cpu_features()
    rates = {name: _figure(value, "measured", _SOURCE) for name, value in speed.tera_ops.items()}
    narrow = tuple(name for name in ("fp16", "bf16", "int8") if name in rates)
    arm = platform.machine() in ("aarch64", "arm64")
    total = psutil.virtual_memory().total / _GIB
    return TargetProfile(
        name=HOST,
        title=f"this machine: {cpu_model()}, {cores} cores",
        kind="cpu",
        memory=Memory(
            total_gib=_figure(total, "measured", "the system's count"),
            reserved_gib=_figure(min(_SYSTEM_GIB, total / 2), "assumed", "a system without a desktop"),
            unified=True,
        ),
        bandwidth=Bandwidth(sustained_gb_s=_figure(speed.read_gb_s, "measured", f"{_SOURCE}: reading")),
        compute=Compute(**rates),
        runtimes=("llama_cpp", "onnxruntime", "openvino") if arm else ("openvino", "llama_cpp", "onnxruntime"),
        fast_dtypes=(*narrow, "int4"),
        sensors=("thermal_zone",) if arm else ("rapl", "thermal_zone"),
        cpu=f"{cpu_model()}, {cores} usable cores",
        isa=tuple(features),
    )


def _figure(value: float, mark: Mark, source: str) -> Figure:
    return Figure(value=float(f"{value:.4g}"), mark=mark, source=source)


def _key() -> str:
    return f"{hardware()} usable {usable_cores()}"


def _recall() -> CpuSpeed | None:
    try:
        found = json.loads((cache_folder() / _FILE).read_text(encoding="utf-8"))[_key()]
        rates = {str(name): float(rate) for name, rate in found["tera_ops"].items()}
        speed = CpuSpeed(float(found["triad_gb_s"]), float(found["read_gb_s"]), rates)
        cpu_profile(speed)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError):
        return None
    return speed


def _remember(speed: CpuSpeed) -> None:
    with contextlib.suppress(InputError, RuntimeError):
        write_text(cache_folder() / _FILE, json.dumps({_key(): asdict(speed)}, indent=1) + "\n")
