"""`edgevlm targets`: the devices that a model can be compiled for, and this machine as one of them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from edgevlm.tables import print_table, printable
from edgevlm.targets.board import Gpu, Jetson, find_gpus, find_jetson
from edgevlm.targets.catalog import load_target, target_names
from edgevlm.targets.host import (
    HOST,
    check_writable,
    cpu_profile,
    find_target,
    measured,
    probed_profile,
    profile_yaml,
    write_profile,
)
from edgevlm.targets.profile import Figure, TargetProfile

#: Checks of `edgevlm doctor` that are about runtimes.
_RUNTIMES = ("onnxruntime", "openvino", "llama.cpp", "tensorrt")
#: What is printed of a profile, by its field.
_UNITS = {"total_gib": "GiB", "reserved_gib": "GiB", "theoretical_gb_s": "GB/s", "sustained_gb_s": "GB/s"}


@click.group(name="targets")
def command() -> None:
    """Devices that a model can be compiled for."""


@command.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="Print all profiles as JSON.")
def list_(as_json: bool) -> None:
    """List the devices that have a profile."""
    profiles = [load_target(name) for name in target_names()]
    if as_json:
        click.echo(json.dumps([_data(profile) for profile in profiles], ensure_ascii=False, indent=2))
        return
    headers = ["name", "device", "memory GiB", "GB/s", "fp16 TFLOPS", "int8 TOPS", "SM", "runs first"]
    rows = [_row(profile) for profile in profiles]
    rows.append([HOST, "this machine; measured by `edgevlm targets probe`", *[""] * 6])
    print_table(headers, rows, numeric=headers[2:7])


@command.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print the profile as JSON.")
@click.option("--yaml", "as_yaml", is_flag=True, help="Print it as a file that can be changed and given to --target.")
def show(name: str, as_json: bool, as_yaml: bool) -> None:
    """Show a profile and where its numbers come from.

    NAME is one of the list, a .yaml file, or cpu for this machine. Marks: source, read there; inferred, calculated from
    such numbers; memory, remembered; assumed; measured, on the device.
    """
    profile = find_target(name)
    if as_json:
        click.echo(json.dumps(_data(profile), ensure_ascii=False, indent=2))
    elif as_yaml:
        click.echo(profile_yaml(profile), nl=False)
    else:
        _print(profile)


@command.command()
@click.option(
    "--write", "out", type=click.Path(path_type=Path), metavar="FILE.yaml", help="Write a profile for --target."
)
@click.option("--json", "as_json", is_flag=True, help="Print what was found as JSON.")
@click.option("--force", is_flag=True, help="Replace FILE.yaml.")
def probe(out: Path | None, as_json: bool, force: bool) -> None:
    """Measure this machine, and write a profile.

    Memory bandwidth, matrix products by type, runtimes, GPUs and Jetson boards. Takes some seconds; other programs make
    the figures smaller. `--target cpu` uses them until the hardware changes.
    """
    from edgevlm.doctor import examine

    if out is not None:
        check_writable(out, force=force)
    speed = measured()
    gpus, jetson = find_gpus(), find_jetson()
    runtimes = [check for check in examine() if check.name in _RUNTIMES]
    if as_json:
        found = {
            "cpu": dataclasses.asdict(speed),
            "gpus": [dataclasses.asdict(gpu) for gpu in gpus],
            "jetson": None if jetson is None else dataclasses.asdict(jetson),
            "runtimes": [dataclasses.asdict(check) for check in runtimes],
            "profile": _data(cpu_profile(speed)),
        }
        click.echo(json.dumps(found, ensure_ascii=False, indent=2))
    else:
        rates = [f"{rate:.3g} T{'FL' if name != 'int8' else ''}OPS {name}" for name, rate in speed.tera_ops.items()]
        rows = [
            ["cpu", cpu_profile(speed).cpu],
            ["instruction sets", " ".join(cpu_profile(speed).isa) or "unknown"],
            ["memory", f"{speed.read_gb_s:.1f} GB/s reading, {speed.triad_gb_s:.1f} GB/s triad"],
            ["matrix products", ", ".join(rates)],
            *([f"gpu {number}", _described(gpu)] for number, gpu in enumerate(gpus)),
            *([["jetson", _board(jetson)]] if jetson is not None else []),
            *([check.name, check.detail if check.state != "absent" else "not installed"] for check in runtimes),
        ]
        print_table(["", "found"], rows)
    if out is not None:
        write_profile(probed_profile(speed, gpus, jetson, out.stem), out, force=force)
        if not as_json:
            click.echo(f"{out}: use it as --target {out}")


def _row(profile: TargetProfile) -> list[str]:
    compute, bandwidth = profile.compute, profile.bandwidth
    speed = bandwidth.theoretical_gb_s or bandwidth.sustained_gb_s
    return [
        profile.name,
        profile.title,
        f"{profile.memory.total_gib.value:g}",
        _value(speed),
        _value(compute.fp16),
        _value(compute.int8),
        "" if profile.gpu is None else profile.gpu.value,
        profile.runtimes[0],
    ]


def _value(figure: Figure | None) -> str:
    return "" if figure is None else f"{figure.value:g}"


def _print(profile: TargetProfile) -> None:
    """Figures with their sources, then what has no number."""
    rows = [[name, value, mark, source] for name, value, mark, source in _figures(profile)]
    print_table(
        ["figure", "value", "mark", "source"], rows, title=f"{profile.name}: {profile.title}", numeric=["value"]
    )
    modes = [
        [
            "" if mode.id is None else str(mode.id),
            mode.name + (" (default)" if mode.default else ""),
            *("" if number is None else f"{number:g}" for number in (mode.watts, mode.gpu_mhz, mode.memory_mhz)),
            mode.mark,
        ]
        for mode in profile.power_modes
    ]
    if modes:
        headers = ["id", "power mode", "W", "GPU MHz", "memory MHz", "mark"]
        click.echo()
        print_table(headers, modes, numeric=headers[2:5])
    if profile.software:
        click.echo()
        rows = [
            [
                release.jetpack or "",
                release.l4t or "",
                release.cuda or "",
                release.tensorrt,
                release.mark,
                release.source,
            ]
            for release in profile.software
        ]
        print_table(["JetPack", "L4T", "CUDA", "TensorRT", "mark", "source"], rows)
    click.echo()
    click.echo(f"runtimes, best first: {', '.join(profile.runtimes)}; format: {profile.preferred_format}")
    click.echo(f"types that are fast: {', '.join(profile.fast_dtypes)}")
    for label, words in (
        ("sensors", profile.sensors),
        ("instruction sets", profile.isa),
        ("boards", profile.board_ids),
    ):
        if words:
            click.echo(f"{label}: {', '.join(map(printable, words))}")
    if profile.cpu:
        click.echo(f"cpu: {printable(profile.cpu)}")


def _figures(profile: TargetProfile) -> Iterator[tuple[str, str, str, str]]:
    """Name, value with its unit, mark and source of every number."""
    parts = (("memory", profile.memory), ("bandwidth", profile.bandwidth), ("compute", profile.compute))
    for part, numbers in (*parts, ("power", profile.power)):
        for name, figure in numbers:
            if isinstance(figure, Figure):
                unit = "W" if part == "power" else _UNITS.get(name, "TOPS" if name == "int8" else "TFLOPS")
                label = name.removesuffix("_gib").removesuffix("_gb_s").removesuffix("_w")
                yield f"{part} {label}", f"{figure.value:g} {unit}", figure.mark, figure.source
    if profile.gpu is not None:
        yield "compute capability", profile.gpu.value, profile.gpu.mark, profile.gpu.source
    if profile.gpu_clock_ghz is not None:
        yield (
            "gpu clock",
            f"{profile.gpu_clock_ghz.value:g} GHz",
            profile.gpu_clock_ghz.mark,
            profile.gpu_clock_ghz.source,
        )
    if profile.tensorrt_rtx is not None:
        yield "tensorrt-rtx", profile.tensorrt_rtx.version, profile.tensorrt_rtx.mark, profile.tensorrt_rtx.source


def _data(profile: TargetProfile) -> dict[str, Any]:
    return profile.model_dump(mode="json", exclude_defaults=True)


def _described(gpu: Gpu) -> str:
    major, minor = gpu.compute_capability
    profile = f"profile {gpu.target}" if gpu.target else "no profile of this name"
    return f"{gpu.name}, {gpu.memory_bytes / 2**30:.1f} GiB, SM {major}.{minor}, driver {gpu.driver}; {profile}"


def _board(jetson: Jetson) -> str:
    system = f"L4T {jetson.l4t or 'unknown'}" + (f" (JetPack {jetson.jetpack})" if jetson.jetpack else "")
    mode = f"power mode {jetson.mode}" if jetson.mode else "power mode unknown"
    return f"{jetson.model}; {system}; {mode}; profile {jetson.target or 'none for this board'}"
