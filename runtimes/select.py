"""Choosing an engine for each component of a bundle.

In: a bundle, an engine's name or `auto`, and options. Out: a loaded engine. `auto` considers what is installed and can
read the bundle; among several vision engines it measures each on this machine, in a child process so that a crash
costs a candidate and nothing else, and remembers the result (`runtimes.memory`) for this hardware, artefact and
engine version.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from edgevlm.bundle import Bundle, open_bundle
from edgevlm.child import run_child
from edgevlm.errors import EdgeVLMError, EngineError, InputError
from edgevlm.runtimes import memory
from edgevlm.runtimes.base import DecoderEngine, EngineOptions, FusionEngine, TextEngine, VisionEngine
from edgevlm.runtimes.build_plan import PLAN, ComputeType, Role, read_build_plan
from edgevlm.runtimes.checks import thread_count
from edgevlm.runtimes.device import AUTO, Device, DeviceKind, parse_device
from edgevlm.spec import ModelSpec

_TIMEOUT_S = 300.0
_MAX_RUNS = 3
_ENOUGH_S = 2.0
#: Pixels along one side of an image to measure with, where images may have any size.
_USUAL_SIDE = 448
#: Mean image embeddings of two engines must agree this well; bfloat16 stays above 0.999.
_MIN_COSINE = 0.98


@dataclass(frozen=True)
class _Choice:
    """An engine.

    Attributes:
        modules: module -> packages that have it; one of them is needed.
        extra: what installs it.
        suffix: ending of the artefact that it reads.
        devices: that it may compute on.
    """

    modules: dict[str, tuple[str, ...]]
    extra: str
    suffix: str
    devices: tuple[DeviceKind, ...]

    @property
    def _found(self) -> list[str]:
        return [module for module in self.modules if importlib.util.find_spec(module) is not None]

    @property
    def installed(self) -> bool:
        return bool(self._found)

    @property
    def version(self) -> str:
        """Packages that are installed, with their versions."""
        versions = []
        for package in (package for module in self._found for package in self.modules[module]):
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                versions.append(f"{package} {importlib.metadata.version(package)}")
        return ", ".join(versions)


_ONNXRUNTIME = _Choice(
    {"onnxruntime": ("onnxruntime", "onnxruntime-gpu")}, "onnx", ".onnx", ("auto", "cpu", "cuda", "tensorrt")
)
_TENSORRT = _Choice(
    {"tensorrt": ("tensorrt",), "tensorrt_rtx": ("tensorrt-rtx",)}, "tensorrt", ".engine", ("auto", "cuda")
)
VISION_ENGINES = {
    "tensorrt": _TENSORRT,
    "openvino": _Choice({"openvino": ("openvino",)}, "onnx", ".onnx", ("auto", "cpu")),
    "onnxruntime": _ONNXRUNTIME,
}
DECODER_ENGINES = {
    "tensorrt": _TENSORRT,
    "llama_cpp": _Choice({"llama_cpp": ("llama-cpp-python",)}, "gguf", ".gguf", ("auto", "cpu", "cuda")),
    "onnxruntime": _ONNXRUNTIME,
}


def open_vision(bundle: Bundle, name: str, options: EngineOptions) -> VisionEngine:
    """Load a vision engine; `auto` takes the fastest here.

    Raises:
        InputError: the engine is unknown, not installed, or cannot read this bundle.
        EngineError: it cannot load the graph; with `auto`, none can.
    """
    candidates = _candidates(bundle, "vision", name, VISION_ENGINES, options.device)
    if candidates == ["tensorrt"]:
        from edgevlm.runtimes.tensorrt import TensorRTVision

        return TensorRTVision(bundle, options.device.index)
    chosen = candidates[0] if len(candidates) == 1 else _fastest_vision(bundle, candidates, options)
    path = bundle.artifact("vision", ".onnx")
    if chosen == "openvino":
        from edgevlm.runtimes.openvino import OpenVinoVision

        return OpenVinoVision(path, bundle.spec, options)
    from edgevlm.runtimes.onnxruntime import OnnxRuntimeVision

    return OnnxRuntimeVision(path, bundle.spec, options, compute=_compute(bundle, "vision"))


def open_text(bundle: Bundle, options: EngineOptions) -> TextEngine | None:
    """Load the text engine; None for a bundle whose image tokens do not depend on the question.

    Raises:
        BundleError: the bundle lacks its text graph.
        InputError: ONNX Runtime, which runs it whatever the other engines, is not installed.
        EngineError: it cannot load the graph.
    """
    spec = bundle.spec.vision.text
    if spec is None:
        return None
    path = bundle.artifact("text", ".onnx")
    if not _ONNXRUNTIME.installed:
        raise InputError("the bundle's text tower needs ONNX Runtime", str(path), "pip install 'edgevlm[onnx]'")
    from edgevlm.runtimes.onnxruntime import OnnxRuntimeText

    return OnnxRuntimeText(path, spec, options)


def open_fusion(bundle: Bundle, options: EngineOptions) -> FusionEngine | None:
    """Load the fusion engine, TensorRT's where it was built for this machine; None for a bundle without a fusion.

    Raises:
        BundleError: the bundle lacks its fusion graph.
        InputError: ONNX Runtime, which otherwise runs it whatever the decoder's engine, is not installed.
        EngineError: it cannot load the graph.
    """
    if bundle.spec.fusion is None:
        return None
    if bundle.find("fusion", ".engine") is not None and options.device.kind in _TENSORRT.devices:
        from edgevlm.runtimes.tensorrt import TensorRTFusion, has_engine

        if has_engine(bundle, "fusion", options.device.index):
            return TensorRTFusion(bundle, options.device.index)
    path = bundle.artifact("fusion", ".onnx")
    if not _ONNXRUNTIME.installed:
        raise InputError("the bundle's fusion needs ONNX Runtime", str(path), "pip install 'edgevlm[onnx]'")
    from edgevlm.runtimes.onnxruntime import OnnxRuntimeFusion

    return OnnxRuntimeFusion(path, bundle.spec, options, compute=_compute(bundle, "fusion"))


def _compute(bundle: Bundle, role: Role) -> ComputeType:
    """What a graph computes in, which only build plans say: others compute in float32."""
    if bundle.manifest.format != "tensorrt":
        return "float32"
    component = read_build_plan(bundle.path / PLAN).component(role)
    return "float32" if component is None else component.compute


def open_decoder(bundle: Bundle, name: str, options: EngineOptions) -> DecoderEngine:
    """Load a decoder engine; `auto` takes the one for the bundle's decoder.

    Raises:
        InputError: the engine is unknown, not installed, or cannot read this bundle; or an option is out of range.
        EngineError: it cannot load the decoder.
    """
    chosen = _candidates(bundle, "decoder", name, DECODER_ENGINES, options.device)[0]
    if chosen == "tensorrt":
        from edgevlm.runtimes.tensorrt import TensorRTDecoder

        return TensorRTDecoder(bundle, options, options.device.index)
    if chosen == "llama_cpp":
        from edgevlm.runtimes.llama_cpp import LlamaCppDecoder

        return LlamaCppDecoder(bundle.artifact("decoder", ".gguf"), bundle.spec.decoder, options)
    if bundle.manifest.format == "tensorrt":
        if options.device.is_gpu:
            what = "ONNX Runtime runs the decoder of a TensorRT bundle on the CPU alone"
            raise options.device.refused(what, "build engines: edgevlm build BUNDLE --target NAME")
        from edgevlm.runtimes.onnxruntime_static import OnnxRuntimeStaticDecoder

        return OnnxRuntimeStaticDecoder(bundle.path, read_build_plan(bundle.path / PLAN), bundle.spec, options)
    from edgevlm.runtimes.onnxruntime import OnnxRuntimeDecoder

    paths = bundle.artifact("decoder", ".onnx"), bundle.artifact("embed", ".onnx")
    return OnnxRuntimeDecoder(*paths, bundle.spec, options)


def _candidates(
    bundle: Bundle, role: Literal["vision", "decoder"], name: str, engines: dict[str, _Choice], device: Device
) -> list[str]:
    """The engines that may be used: the named one, or those that are installed and find what they read.

    TensorRT's engines come alone: where `auto` finds one that was built for this machine, nothing else is asked.

    Raises:
        InputError: there is none.
    """
    flag = f"--{role}-engine {name}"
    if name != "auto" and name not in engines:
        raise InputError(
            f"there is no {role} engine {name!r:.40}", flag, f"choose auto, {' or '.join(sorted(engines))}"
        )
    if name != "auto" and device.kind not in engines[name].devices:
        raise device.refused(f"{name} does not compute there", f"it takes {', '.join(engines[name].devices)}")
    named = engines if name == "auto" else {name: engines[name]}
    named = {key: choice for key, choice in named.items() if device.kind in choice.devices}
    readable = {key: choice for key, choice in named.items() if bundle.find(role, choice.suffix) is not None}
    if not readable:
        raise InputError(f"the bundle's {role} is not in a format for this engine", flag, f"use --{role}-engine auto")
    installed = [key for key, choice in readable.items() if choice.installed]
    if not installed:
        extra = next(iter(readable.values())).extra
        raise InputError(f"no {role} engine for this bundle is installed", flag, f"pip install 'edgevlm[{extra}]'")
    if name == "auto" and "tensorrt" in installed:
        others = [key for key in installed if key != "tensorrt"]
        return ["tensorrt"] if not others or _engine_runs(bundle, role, device) else others
    return installed


def _engine_runs(bundle: Bundle, role: Literal["vision", "decoder"], device: Device) -> bool:
    """Whether TensorRT has an engine of the bundle that was built for this machine."""
    from edgevlm.runtimes.tensorrt import has_engine

    return has_engine(bundle, role, device.index)


def _fastest_vision(bundle: Bundle, candidates: list[str], options: EngineOptions) -> str:
    """Measure the candidates, or remember what was measured.

    Raises:
        EngineError: none works.
    """
    entry = bundle.find("vision", ".onnx")
    assert entry is not None
    threads = thread_count(options.threads)
    versions = [f"{name} {VISION_ENGINES[name].version}" for name in candidates]
    size, device = str(bundle.spec.vision.image_size), str(options.device)
    key = memory.key("vision", entry.sha256, size, str(threads), device, *versions)
    remembered = memory.recall(key)
    if remembered in candidates:
        return remembered
    fastest = _pick(_measured(bundle, candidates, threads, options.device))
    memory.remember(key, fastest)
    return fastest


def fastest_vision_ms(bundle: Bundle) -> float:
    """Milliseconds of an image in the engine that is the fastest on all cores of this machine.

    Raises:
        InputError: no engine for the bundle's vision side is installed.
        EngineError: none works.
    """
    candidates = _candidates(bundle, "vision", "auto", VISION_ENGINES, AUTO)
    results = _measured(bundle, candidates, thread_count(0), AUTO)
    return float(results[_pick(results)]["ms"])


def _measured(bundle: Bundle, candidates: list[str], threads: int, device: Device) -> dict[str, dict[str, Any]]:
    """What `measure_vision` says of each candidate that works.

    Raises:
        EngineError: none does.
    """
    results: dict[str, dict[str, Any]] = {}
    failure: EdgeVLMError | None = None
    for name in candidates:
        arguments = {"bundle": str(bundle.path), "name": name, "threads": threads, "device": str(device)}
        try:
            target = "edgevlm.runtimes.select:measure_vision"
            results[name] = run_child(target, arguments, timeout=_TIMEOUT_S).value
        except EdgeVLMError as error:
            failure = error
    if not results:
        raise EngineError("no vision engine works on this machine", str(failure), "run `edgevlm doctor`") from failure
    return results


def _pick(results: dict[str, dict[str, Any]]) -> str:
    """The fastest engine; where ONNX Runtime gives a reference, of those that agree with it."""
    reference = results.get("onnxruntime")
    agreeing = {
        name: result["ms"]
        for name, result in results.items()
        if reference is None or _cosine(result["mean"], reference["mean"]) >= _MIN_COSINE
    }
    return min(agreeing, key=lambda name: agreeing[name])


def _cosine(a: list[float], b: list[float]) -> float:
    x, y = np.array(a), np.array(b)
    return float(x @ y / max(float(np.linalg.norm(x) * np.linalg.norm(y)), 1e-30))


def _input_shape(spec: ModelSpec) -> tuple[int, ...]:
    """Shape of the pixels of an image of usual size."""
    size, patches = spec.vision.image_size, spec.preprocess.patches
    if patches is None:
        return 1, *spec.vision.input_shape
    side = max(1, min(size, _USUAL_SIDE) // spec.vision.stride)
    return side, side, patches.merge_size**2, 3 * patches.frames * patches.patch_size**2


def measure_vision(send: Callable[[Any], None], bundle: str, name: str, threads: int, device: str) -> dict[str, Any]:
    """Child entry point: milliseconds of the fastest of a few runs on noise, and the mean embedding.

    Says when it has loaded and run, so that slow is not taken for hung.
    """
    from edgevlm.question import GuidedVision
    from edgevlm.tile_tokens import WHOLE, encode_pixels, shares_tiles  # which imports this package

    opened = open_bundle(Path(bundle))
    pixels = np.random.default_rng(0).random(_input_shape(opened.spec), dtype=np.float32)
    boxes = WHOLE if shares_tiles(opened.spec) else None
    engine = open_vision(opened, name, EngineOptions(threads=threads, device=parse_device(device)))
    if (text := opened.spec.vision.text) is not None:
        engine = GuidedVision(engine, np.full((1, text.projection_size), text.projection_size**-0.5, np.float32))
    send("loaded")
    embeddings = encode_pixels(engine, pixels, boxes).rows
    send("warm")
    runs: list[float] = []
    while len(runs) < _MAX_RUNS and (len(runs) == 0 or sum(runs) < _ENOUGH_S):
        started = time.perf_counter()
        encode_pixels(engine, pixels, boxes)
        runs.append(time.perf_counter() - started)
    return {"ms": 1000 * min(runs), "mean": embeddings[0].mean(axis=0, dtype=np.float64).tolist()}
