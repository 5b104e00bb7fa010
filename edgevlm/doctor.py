"""What `edgevlm doctor` examines: the system, each runtime, memory, disk and sensors.

Out: a list of checks, each with a state, a detail and, where something is wrong, what to do. Every runtime is loaded
and tried in a child process, so that one that crashes is a line here and nothing worse.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from edgevlm.child import ChildError, Json, Send, run_child
from edgevlm.errors import EdgeVLMError
from edgevlm.runtimes.trt.cuda import find_gpu
from edgevlm.runtimes.trt.library import LIBRARIES, Library, installed, library_version
from edgevlm.targets.isa import cpu_features
from edgevlm.targets.sensors.log import SensorLog

State = Literal["ok", "absent", "warning", "broken"]

_TIMEOUT_S = 120.0
_LEAST_MEMORY = 2 << 30
_LEAST_DISK = 2 << 30
_MIN_AGREEMENT = 0.99
#: llama.cpp's name of a feature that the CPU has and a build may lack.
_LLAMA_FLAGS = {"avx2": "AVX2", "avx512f": "AVX512", "avx512_vnni": "AVX512_VNNI", "amx_int8": "AMX_INT8"}
_REBUILD = (
    "build it for this machine: python tools/llama_wheel.py (CMAKE_ARGS='-DGGML_NATIVE=ON -DCMAKE_CXX_FLAGS=-fno-dse')"
)
_HOST_PACKAGES = ("torch", "transformers", "onnx", "gguf", "optimum")


@dataclass(frozen=True)
class Check:
    """One examined thing. `absent` is no fault; `warning` works, but not as well as it could."""

    name: str
    state: State
    detail: str
    hint: str = ""


def examine() -> list[Check]:
    """Examine this machine; takes a few seconds."""
    runtimes = [_onnxruntime(), _openvino(), _llama_cpp(), _tensorrt()]
    # TensorRT with a warning is one that builds engines and runs none.
    if all(check.state == "absent" or (check.name, check.state) == ("tensorrt", "warning") for check in runtimes):
        hint = "pip install 'edgevlm[onnx]' or 'edgevlm[gguf]'"
        runtimes.append(Check("runtimes", "broken", "none is installed: no bundle can run", hint))
    return [_python(), _cpu(), _memory(), _disk(), *runtimes, _sensors(Path("/")), _compiler()]


def _python() -> Check:
    system = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    if sys.version_info < (3, 11):
        return Check("python", "warning", f"{system}: enough to run bundles", "exporting needs Python 3.11 or newer")
    return Check("python", "ok", system)


def _cpu() -> Check:
    cores = f"{psutil.cpu_count(logical=False) or '?'} cores, {psutil.cpu_count() or '?'} threads"
    return Check("cpu", "ok", f"{cores}: {' '.join(cpu_features()) or platform.machine()}")


def _memory() -> Check:
    memory = psutil.virtual_memory()
    detail = f"{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB free"
    if memory.available < _LEAST_MEMORY:
        return Check("memory", "warning", detail, "close other programs before exporting a large model")
    return Check("memory", "ok", detail)


def _disk() -> Check:
    places = {Path.cwd(), Path(tempfile.gettempdir())}
    free = {place: shutil.disk_usage(place).free for place in sorted(places)}
    detail = ", ".join(f"{place}: {size / 2**30:.1f} GiB free" for place, size in free.items())
    if min(free.values()) < _LEAST_DISK:
        return Check("disk", "warning", detail, "an export needs up to three times the size of the checkpoint")
    return Check("disk", "ok", detail)


def _onnxruntime() -> Check:
    return _engine("onnxruntime", "onnxruntime", "onnx", "edgevlm.doctor:probe_onnxruntime")


def _openvino() -> Check:
    check = _engine("openvino", "openvino", "onnx", "edgevlm.doctor:probe_openvino")
    consent = Path.home() / "intel" / "openvino_telemetry"
    if check.state == "ok" and consent.is_file() and consent.read_text(encoding="utf-8", errors="replace") == "1":
        return Check(check.name, "warning", f"{check.detail}; telemetry is on", "run: opt_in_out --opt_out")
    return check


def _engine(name: str, module: str, extra: str, target: str) -> Check:
    if importlib.util.find_spec(module) is None:
        return Check(name, "absent", "not installed", f"pip install 'edgevlm[{extra}]'")
    try:
        return Check(name, "ok", str(run_child(target, {}, timeout=_TIMEOUT_S).value))
    except EdgeVLMError as error:
        return Check(name, "broken", error.what, f"install it again: pip install --force-reinstall {name}")


def probe_onnxruntime(send: Send) -> Json:  # noqa: ARG001 (the signature of a child's function)
    """Child entry point: version and execution providers."""
    import onnxruntime

    onnxruntime.disable_telemetry_events()
    providers = ", ".join(name.removesuffix("ExecutionProvider") for name in onnxruntime.get_available_providers())
    return f"{onnxruntime.__version__}, providers {providers}, telemetry off"


def probe_openvino(send: Send) -> Json:  # noqa: ARG001
    """Child entry point: version and devices."""
    import openvino

    return f"{openvino.__version__.split('-')[0]}, devices {', '.join(openvino.Core().available_devices)}"


def _tensorrt() -> Check:
    found = [library for library in LIBRARIES if installed(library)]
    if not found:
        return Check("tensorrt", "absent", "not installed", "docs/jetson.md; on an RTX card pip install 'edgevlm[rtx]'")
    try:
        answer = run_child("edgevlm.doctor:probe_tensorrt", {"libraries": found}, timeout=_TIMEOUT_S).value
    except EdgeVLMError as error:
        return Check("tensorrt", "broken", error.what, "install it again")
    if answer["gpu"]:
        return Check("tensorrt", "ok", f"{answer['versions']} on {answer['gpu']}")
    return Check(
        "tensorrt", "warning", f"{answer['versions']}; it reaches no GPU: it lints and builds, and runs nothing"
    )


def probe_tensorrt(send: Send, libraries: list[Library]) -> Json:  # noqa: ARG001
    """Child entry point: versions of the libraries, and the GPU that they would run on, if CUDA tells."""
    gpu = find_gpu()
    capability = "" if gpu is None else " (SM {}.{})".format(*gpu.compute_capability)
    versions = ", ".join(f"{library} {library_version(library)}" for library in libraries)
    return {"versions": versions, "gpu": "" if gpu is None else f"{gpu.name}{capability}"}


def _llama_cpp() -> Check:
    name, target = "llama.cpp", "edgevlm.runtimes.llama_probe:probe"
    if importlib.util.find_spec("llama_cpp") is None:
        return Check(name, "absent", "not installed", "pip install 'edgevlm[gguf]'")
    try:
        answer = run_child(target, {"repack": True}, timeout=_TIMEOUT_S).value
    except ChildError as error:
        return Check(name, "broken", f"{error.what} on a tiny Q4_0 model{_where_it_breaks(target)}", _REBUILD)
    except EdgeVLMError as error:
        return Check(name, "broken", error.what, _REBUILD)
    detail = f"{answer['version']}, {answer['flags']}"
    if not answer["agreement"] >= _MIN_AGREEMENT:
        what = f"{detail}; its fast kernels disagree with the plain ones (cosine {answer['agreement']:.3f})"
        return Check(name, "broken", what, _REBUILD)
    missing = [
        flag
        for feature, flag in _LLAMA_FLAGS.items()
        if feature in cpu_features() and flag not in answer["flags"].split()
    ]
    if missing:
        return Check(name, "warning", f"{detail}; this CPU also has {', '.join(missing)}", _REBUILD)
    return Check(name, "ok", detail)


def _where_it_breaks(target: str) -> str:
    """Whether the plain kernels work where the repacked ones crashed."""
    try:
        run_child(target, {"repack": False}, timeout=_TIMEOUT_S)
    except EdgeVLMError:
        return ""
    amx = " (AMX)" if "amx_int8" in cpu_features() else ""
    return f", in its fast kernels{amx}; the plain ones work"


def _sensors(root: Path) -> Check:
    """Power, heat and clocks under `root`: what can be read, and why the rest cannot."""
    with SensorLog(root) as log:
        found = log.found
    read = [str(each) for each in found if each.about is not None]
    refused = [each for each in found if each.state in ("forbidden", "broken")]
    absent = [each.name for each in found if each.state == "absent"]
    parts = [*read, *map(str, refused), *([f"no {', '.join(absent)} here"] if absent else [])]
    if refused:
        return Check("sensors", "warning", "; ".join(parts), next((each.hint for each in refused if each.hint), ""))
    power = any(each.about is not None and each.about.rails for each in found)
    return Check("sensors", "ok" if power else "absent", "; ".join(parts))


def _compiler() -> Check:
    """The host half: what `edgevlm export` needs. Its versions are read, nothing is imported."""
    versions, missing = [], []
    for package in _HOST_PACKAGES:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(package)
    if missing:
        detail = f"cannot export here: {', '.join(missing)} not installed"
        return Check("export", "absent", detail, "pip install 'edgevlm[export]'")
    return Check("export", "ok", ", ".join(versions))
