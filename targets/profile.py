"""What is known of a device: memory, bandwidth, compute, software, power, and where each number comes from.

In: a YAML file, which this package ships or a user wrote. Out: a `TargetProfile`. Numbers that are missing, impossible
or without a source are refused with the file and the field. Units are those of data sheets: GiB of memory, GB/s (10^9),
tera operations a second of dense arithmetic (a multiply-add counts as two), watts, MHz.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from edgevlm.errors import InputError
from edgevlm.validation import first_problem

#: How sure a number is: read in the source named, calculated from such numbers, remembered without a source at hand,
#: assumed because somebody has to say something, or measured on the device itself.
Mark = Literal["source", "inferred", "memory", "assumed", "measured"]
Kind = Literal["jetson", "gpu", "cpu"]
Dtype = Literal["fp32", "fp16", "bf16", "int8", "fp8", "int4", "fp4"]
Runtime = Literal["tensorrt", "tensorrt_rtx", "onnxruntime", "openvino", "llama_cpp", "torch"]
Sensor = Literal["nvml", "ina3221", "tegrastats", "rapl", "vcgencmd", "thermal_zone", "external_meter"]
Format = Literal["tensorrt", "onnx", "gguf"]

_FORMAT_OF: dict[str, Format] = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt", "llama_cpp": "gguf"}
_NAME = re.compile(r"[a-z0-9][a-z0-9.-]*")
_VERSION = re.compile(r"\d+(\.\d+)*")
_GIB = 1 << 30
#: The first compute capability with tensor cores for a type, as CUDA counts them.
_FIRST_WITH = {"fp8": (8, 9), "fp4": (10, 0)}
_MAX_BYTES = 1 << 20


def _checked_version(text: str) -> str:
    if not _VERSION.fullmatch(text):
        raise ValueError(f"{text!r} is not a version such as 10.3, in quotes")
    return text


Version = Annotated[str, AfterValidator(_checked_version)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class _Sourced(_Part):
    """Something else stated, how sure it is, and where it is stated."""

    mark: Mark
    source: str = Field(min_length=3)


class Figure(_Part):
    """One number of a device, how sure it is, and where it is stated."""

    value: float = Field(gt=0)
    mark: Mark
    source: str = Field(min_length=3)


class Capability(_Sourced):
    """A GPU's compute capability, such as 8.7."""

    value: Annotated[str, Field(pattern=r"^\d{1,2}\.\d$")]


class Release(_Sourced):
    """One version of a library."""

    version: Version


class Memory(_Part):
    """Memory that a model can be in; `reserved_gib` of it belong to firmware, system and desktop."""

    total_gib: Figure
    reserved_gib: Figure
    unified: bool


class Bandwidth(_Part):
    """Of that memory: what the data sheet says, and what programs were seen to reach."""

    theoretical_gb_s: Figure | None = None
    sustained_gb_s: Figure | None = None


class Compute(_Part):
    """Dense tera operations a second by type; what the device has no units for is left out."""

    fp32: Figure
    fp16: Figure | None = None
    bf16: Figure | None = None
    int8: Figure | None = None
    fp8: Figure | None = None
    fp4: Figure | None = None


class Software(_Sourced):
    """A release of the vendor's system or library that the device runs; `jetpack` and `l4t` on Jetson only."""

    tensorrt: Version
    jetpack: Version | None = None
    l4t: Version | None = None
    cuda: Version | None = None


class PowerMode(_Sourced):
    """A power mode; `id` as nvpmodel counts."""

    name: str = Field(min_length=1)
    id: int | None = Field(default=None, ge=0)
    watts: float | None = Field(default=None, gt=0)
    gpu_mhz: float | None = Field(default=None, gt=0)
    memory_mhz: float | None = Field(default=None, gt=0)
    default: bool = False


class Power(_Part):
    """What the device draws: at rest, while it answers, and at most."""

    idle_w: Figure | None = None
    busy_w: Figure | None = None
    limit_w: Figure | None = None


class TargetProfile(_Part):
    """A device.

    Attributes:
        name: what `--target` takes; the file's name without `.yaml`.
        title: for people.
        kind: a Jetson module, a graphics card beside a host, or a CPU.
        gpu: the compute capability, of Jetsons and graphics cards.
        gpu_clock_ghz: at which `compute` holds.
        software: releases with TensorRT that the device runs, oldest first.
        tensorrt_rtx: the version of TensorRT for RTX that builds for this card without having it.
        runtimes: in order of preference.
        fast_dtypes: types that gain time here and not only bytes; int4 are weights.
        board_ids: parts of `/proc/device-tree/compatible` that tell the board.
        cpu: the cores in words, of CPUs.
        isa: instruction sets that kernels use, as Linux names them.
    """

    name: str
    title: str = Field(min_length=3)
    kind: Kind
    memory: Memory
    bandwidth: Bandwidth
    compute: Compute
    gpu: Capability | None = None
    gpu_clock_ghz: Figure | None = None
    software: tuple[Software, ...] = ()
    tensorrt_rtx: Release | None = None
    runtimes: tuple[Runtime, ...] = Field(min_length=1)
    fast_dtypes: tuple[Dtype, ...] = Field(min_length=1)
    power: Power = Power()
    power_modes: tuple[PowerMode, ...] = ()
    sensors: tuple[Sensor, ...] = ()
    board_ids: tuple[str, ...] = ()
    cpu: str = ""
    isa: tuple[str, ...] = ()

    @property
    def compute_capability(self) -> tuple[int, int] | None:
        """(8, 7) for SM 8.7; None without an NVIDIA GPU."""
        if self.gpu is None:
            return None
        major, minor = self.gpu.value.split(".")
        return int(major), int(minor)

    @property
    def tensorrt(self) -> tuple[tuple[int, ...], ...]:
        """TensorRT versions that the device may have, oldest first; empty without TensorRT."""
        return tuple(sorted({version_tuple(release.tensorrt) for release in self.software}))

    def tensorrt_of(self, jetpack: str) -> tuple[int, ...]:
        """The TensorRT version of a JetPack.

        Raises:
            InputError: the profile does not have this JetPack.
        """
        for release in self.software:
            if release.jetpack == jetpack:
                return version_tuple(release.tensorrt)
        known = ", ".join(release.jetpack for release in self.software if release.jetpack) or "none"
        raise InputError(f"JetPack {jetpack} is not known for this target", self.name, f"known: {known}")

    @property
    def formats(self) -> tuple[Format, ...]:
        """What its runtimes read, best first."""
        return tuple(dict.fromkeys(_FORMAT_OF.get(runtime, "onnx") for runtime in self.runtimes))

    @property
    def preferred_format(self) -> Format:
        """What the first runtime reads."""
        return self.formats[0]

    @property
    def memory_bytes(self) -> int:
        """All of the memory."""
        return round(self.memory.total_gib.value * _GIB)

    @property
    def usable_bytes(self) -> int:
        """What is left for a program."""
        return self.memory_bytes - round(self.memory.reserved_gib.value * _GIB)

    @model_validator(mode="after")
    def _is_possible(self) -> TargetProfile:
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"name: {self.name!r} is not made of small letters, digits, dots and hyphens")
        _in_range("memory.total_gib", self.memory.total_gib, 0.25, 4096)
        if self.memory.reserved_gib.value >= self.memory.total_gib.value:
            raise ValueError("memory.reserved_gib: nothing is left for a program")
        _check_bandwidth(self.bandwidth)
        for name, figure in _figures(self.compute):
            _in_range(f"compute.{name}", figure, 0.001, 1e5)
        _check_order(self.compute)
        self._check_gpu()
        _check_power(self.power, self.power_modes)
        return self

    def _check_gpu(self) -> None:
        capability = self.compute_capability
        if (capability is None) != (self.kind == "cpu"):
            raise ValueError(f"gpu: a {self.kind} profile {'needs' if capability is None else 'cannot have'} one")
        for name, first in _FIRST_WITH.items():
            if capability is not None and getattr(self.compute, name) is not None and capability < first:
                raise ValueError(f"compute.{name}: compute capability {self.gpu and self.gpu.value} has no such units")
        if self.gpu_clock_ghz is not None:
            _in_range("gpu_clock_ghz", self.gpu_clock_ghz, 0.1, 10)
        for number, release in enumerate(self.software):
            if (release.jetpack is None) == (self.kind == "jetson"):
                raise ValueError(f"software.{number}.jetpack: Jetson modules have one, other devices none")
        if self.kind == "jetson" and not self.software:
            raise ValueError("software: a Jetson profile needs its JetPacks")
        if self.kind == "cpu" and (self.software or self.tensorrt_rtx):
            raise ValueError("software: TensorRT does not run on a CPU")


def read_profile(path: Path) -> TargetProfile:
    """Read a profile.

    Raises:
        InputError: the file cannot be read, or a figure is missing, unknown or impossible; names the file and field.
    """
    hint = "compare it with `edgevlm targets show jetson-orin-nano --yaml`"
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise InputError("the file is too large for a target profile", str(path), hint)
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"the target profile cannot be read: {reason}", str(path), hint) from error
    if not isinstance(loaded, dict):
        raise InputError("the target profile is not a mapping", str(path), hint)
    try:
        return TargetProfile.model_validate(loaded)
    except ValidationError as error:
        field, problem = first_problem(error)
        raise InputError(f"target profile{f', field {field}' if field else ''}: {problem}", str(path), hint) from error


def version_tuple(text: str) -> tuple[int, ...]:
    """`10.13.3` as (10, 13, 3)."""
    return tuple(int(part) for part in text.split("."))


def _figures(compute: Compute) -> list[tuple[str, Figure]]:
    return [(name, value) for name, value in compute if isinstance(value, Figure)]


def _in_range(field: str, figure: Figure, least: float, most: float) -> None:
    if not least <= figure.value <= most:
        raise ValueError(f"{field}: {figure.value:g} is impossible, expected {least:g} to {most:g}")


def _check_bandwidth(bandwidth: Bandwidth) -> None:
    theoretical, sustained = bandwidth.theoretical_gb_s, bandwidth.sustained_gb_s
    if theoretical is None and sustained is None:
        raise ValueError("bandwidth: neither theoretical_gb_s nor sustained_gb_s is given")
    if theoretical is not None:
        _in_range("bandwidth.theoretical_gb_s", theoretical, 0.5, 20_000)
    if sustained is not None:
        _in_range("bandwidth.sustained_gb_s", sustained, 0.5, 20_000)
    if theoretical is not None and sustained is not None and sustained.value > theoretical.value:
        raise ValueError("bandwidth.sustained_gb_s: more than the theoretical bandwidth")


def _check_order(compute: Compute) -> None:
    """Fewer bits are never slower where a device has units for them."""
    for wide, narrow in (("fp16", "int8"), ("fp16", "fp8"), ("fp8", "fp4")):
        wider, narrower = getattr(compute, wide), getattr(compute, narrow)
        if wider is not None and narrower is not None and narrower.value < wider.value:
            raise ValueError(f"compute.{narrow}: slower than {wide}")


def _check_power(power: Power, modes: tuple[PowerMode, ...]) -> None:
    drawn = [(name, value.value) for name, value in power if isinstance(value, Figure)]
    for name, watts in drawn:
        if not 0.1 <= watts <= 2000:
            raise ValueError(f"power.{name}: {watts:g} W is impossible, expected 0.1 to 2000")
    if [watts for _, watts in drawn] != sorted(watts for _, watts in drawn):
        raise ValueError("power: idle_w, busy_w and limit_w must grow in this order")
    ids = [mode.id for mode in modes if mode.id is not None]
    if len(ids) != len(set(ids)):
        raise ValueError("power_modes: two modes have one id")
