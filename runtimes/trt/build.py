"""Building the engines of a bundle: on the device that runs them, or for RTX cards without having one.

In: a bundle with a build plan, and a target. Out: engines and their cards inside the bundle, named in its manifest.
Each engine is put in place whole, with its card behind it; what is there and current is not built again, so that a
build that was interrupted goes on where it was. The manifest names no engine while it is being replaced.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from edgevlm.atomic import atomic_file, write_text
from edgevlm.bundle import Bundle, open_bundle
from edgevlm.child import run_child
from edgevlm.errors import InputError, UnsupportedError
from edgevlm.longrun import cache_folder
from edgevlm.progress import Report, part_of
from edgevlm.runtimes.build_plan import PLAN, BuildPlan, ComponentPlan, fixed_bytes, read_build_plan
from edgevlm.runtimes.trt.cards import Place, card_for, forget_broken, is_current, list_engines, source_hashes
from edgevlm.runtimes.trt.cuda import find_gpu
from edgevlm.runtimes.trt.library import installed, l4t_release, library_version, numeric_version
from edgevlm.targets.catalog import load_target
from edgevlm.targets.constants import constants_for
from edgevlm.targets.decoder_cost import prefill_scratch_bytes
from edgevlm.targets.profile import TargetProfile, version_tuple
from edgevlm.targets.roofline import Peak

#: Seconds without a word after which a build counts as hung; one kernel search on a small board may take long.
_SILENCE_S = 3600.0
_MIB = 1 << 20
#: Of the workspace, and of what the builder needs beside weights and workspace.
_LEAST_WORKSPACE, _BUILDER_ITSELF = 64 * _MIB, 512 * _MIB


@dataclass(frozen=True)
class BuiltEngine:
    """One engine in the bundle; `reused` where it was there already."""

    role: str
    path: Path
    bytes: int
    reused: bool


def build_engines(
    folder: Path, target: str, *, rebuild: bool = False, force: bool = False, progress: Report
) -> list[BuiltEngine]:
    """Build every engine of a bundle for a target, and name them in its manifest.

    Args:
        folder: the bundle; it is changed only by whole files, the manifest last.
        target: a profile's name.
        rebuild: also build what is there and current.
        force: build although the forecast says that the engines do not fit into the target's memory.
        progress: told how far it is.

    Raises:
        BundleError: the bundle is not whole, or has no graphs for TensorRT.
        UnsupportedError: the target has no TensorRT, or one that is too old for the graphs.
        InputError: this machine cannot build for the target, the model is too large for it, or the disk is full.
        EngineError: a library is missing, refuses a graph, or failed.
    """
    forget_broken(folder)
    bundle = open_bundle(folder)
    plan = read_plan(bundle)
    profile = load_target(target)
    if not force and profile.compute_capability is not None:
        check_fits_memory(peak_memory(bundle, plan, profile), profile)
    place = place_for(profile)
    _check_version(plan, place)
    current = [not rebuild and is_current(bundle, component, place) for component in plan.components]
    if not all(current):
        list_engines(bundle.path, place, ())
    built = []
    for number, (component, reused) in enumerate(zip(plan.components, current, strict=True)):
        report = part_of(progress, number / len(plan.components), (number + 1) / len(plan.components))
        if not reused:
            _build(bundle, component, place, report)
        path = bundle.path / place.folder / f"{component.role}.engine"
        built.append(BuiltEngine(component.role, path, path.stat().st_size, reused))
    list_engines(bundle.path, place, plan.components)
    return built


def read_plan(bundle: Bundle) -> BuildPlan:
    """The build plan of a bundle.

    Raises:
        UnsupportedError: it has none.
        BundleError: it cannot be read.
    """
    path = bundle.path / PLAN
    if bundle.find("config", PLAN) is None or not path.is_file():
        raise UnsupportedError(
            "this bundle has no graphs for TensorRT", str(bundle.path), "export with --format tensorrt"
        )
    return read_build_plan(path)


def peak_memory(bundle: Bundle, plan: BuildPlan, profile: TargetProfile) -> Peak:
    """Memory of a target at its fullest while the engines run, forecast from their weights, the cache and the spec."""
    cached = 0
    for component in plan.components:
        sizes = {tensor.name: tensor for tensor in component.inputs}
        copies = 1 if component.in_place else 2
        cached += copies * sum(fixed_bytes(sizes[entry.past]) for entry in component.cache)
    spans = [span.max for part in plan.components for each in part.profiles for span in each.shapes]
    longest = max((shape[1] for shape in spans if len(shape) == 3), default=plan.kv_length)
    return Peak(
        weights=sum(component.weight_bytes for component in plan.components),
        cache=cached,
        scratch=prefill_scratch_bytes(bundle.spec.decoder, longest, value_bytes=2),
        overhead=constants_for(profile, "tensorrt").overhead_bytes,
    )


def check_fits_memory(peak: Peak, profile: TargetProfile) -> None:
    """Raise unless the engines fit.

    Raises:
        InputError: they do not, and by how much.
    """
    short = peak.total - profile.usable_bytes
    if short > 0:
        parts = f"weights {peak.weights / 1e9:.1f}, cache {peak.cache / 1e9:.1f}, the rest {peak.overhead / 1e9:.1f} GB"
        what = f"the model needs {peak.total / 1e9:.1f} GB ({parts}); {profile.title} is short by {short / 1e9:.1f} GB"
        raise InputError(what, "--target", "export with fewer bits or a shorter cache, or build all the same: --force")


def place_for(profile: TargetProfile) -> Place:
    """Where engines for a target run, if this machine can build them.

    Raises:
        UnsupportedError: the target has no TensorRT.
        InputError: only the device itself could build for it, and this machine is another.
        EngineError: the library is not installed.
    """
    capability = profile.compute_capability
    if capability is None or not (profile.tensorrt or profile.tensorrt_rtx):
        raise UnsupportedError(
            f"{profile.title} has no TensorRT", "--target", "take a Jetson, an RTX card or the h100; others run ONNX"
        )
    if profile.tensorrt_rtx is not None:
        return Place("tensorrt_rtx", library_version("tensorrt_rtx"), capability)
    copy = "copy the bundle to the device and run `edgevlm build` there (docs/jetson.md)"
    if not installed("tensorrt"):
        raise InputError(f"engines for {profile.title} are built on it, and TensorRT is not here", "--target", copy)
    gpu = find_gpu()
    if gpu is None:
        raise InputError(f"engines for {profile.title} are built on it, and there is no GPU here", "--target", copy)
    if gpu.compute_capability != capability:
        have = "{}.{}".format(*gpu.compute_capability)
        what = f"{profile.title} has compute capability {profile.gpu and profile.gpu.value}, the {gpu.name} here {have}"
        raise InputError(what, "--target", copy)
    return Place("tensorrt", library_version("tensorrt"), capability, l4t_release())


def _check_version(plan: BuildPlan, place: Place) -> None:
    """Raise where the library is older than the one that the graphs are written for."""
    if place.library == "tensorrt" and numeric_version(place.version) < version_tuple(plan.tensorrt):
        raise UnsupportedError(
            f"the graphs are written for TensorRT {plan.tensorrt}, here is {place.version}",
            PLAN,
            "export again with --format tensorrt and the target's own version",
        )


def _build(bundle: Bundle, component: ComponentPlan, place: Place, report: Report) -> None:
    """Build one engine in a child, and put it and its card in place."""
    folder = bundle.path / place.folder
    source_hashes(bundle, component)
    _check_disk(bundle.path, component)
    engine = folder / f"{component.role}.engine"
    report(0, 1, f"{component.role} engine")
    with atomic_file(engine) as temporary:
        run_child(
            "edgevlm.runtimes.trt.compile:compile_engine",
            {
                "library": place.library,
                "graph": str(bundle.path / component.graph),
                "component": component.model_dump(mode="json"),
                "out": str(temporary),
                "compute_capability": place.capability,
                "workspace_bytes": workspace(component, psutil.virtual_memory().available),
                "timing_cache": _timing_cache(place),
            },
            timeout=_SILENCE_S,
            on_message=_shown(component.role, report),
        )
        card = card_for(bundle, component, place, temporary)
    write_text(folder / f"{component.role}.json", card.model_dump_json(indent=2) + "\n")
    report(1, 1, f"{component.role} engine")


def workspace(component: ComponentPlan, available: int) -> int:
    """Bytes that the builder may try kernels with: the plan's, or what is left here beside two copies of the weights.

    Boards whose GPU shares the memory would otherwise kill the build, or the desktop.
    """
    left = available - 2 * component.weight_bytes - _BUILDER_ITSELF
    return max(_LEAST_WORKSPACE, min(component.workspace_bytes, left))


def _check_disk(folder: Path, component: ComponentPlan) -> None:
    needed = int(1.2 * component.weight_bytes)
    free = shutil.disk_usage(folder).free
    if free < needed:
        what = f"the {component.role} engine needs about {needed / 1e6:.0f} MB of disk, {free / 1e6:.0f} MB are free"
        raise InputError(what, str(folder), "free some space")


def _timing_cache(place: Place) -> str:
    """Kernel timings of this device, kept between builds; tensorrt-rtx measures nothing while it builds."""
    if place.library == "tensorrt_rtx":
        return ""
    with contextlib.suppress(OSError, RuntimeError):
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        return str(folder / f"{Path(place.folder).name}.timing")
    return ""


def _shown(role: str, report: Report) -> Callable[[Any], None]:
    def show(message: Any) -> None:
        total = max(1, message["total"])
        # Phases nest and differ from version to version; only the share of the present one is known.
        report(min(message["done"], total) / (total + 1), 1, f"{role} engine: {message['phase']}")

    return show
