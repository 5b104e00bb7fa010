"""Choosing an engine for each component of a bundle.

In: a bundle, an engine's name or `auto`, and options. Out: a loaded engine. `auto` considers what is installed and can
read the bundle; among several vision engines it measures each on this machine, in a child process so that a crash
costs a candidate and nothing else, and remembers the result (`runtimes.memory`) for this hardware, artefact and
engine version.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgevlm.bundle import Bundle, open_bundle
from edgevlm.child import run_child
from edgevlm.errors import EdgeVLMError, EngineError, InputError
from edgevlm.runtimes import memory
from edgevlm.runtimes.base import DecoderEngine, EngineOptions, FusionEngine, TextEngine, VisionEngine
from edgevlm.runtimes.checks import thread_count
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
    """An engine: the package it needs, the extra that installs it, and the ending of the artefact it reads."""

    package: str
    module: str
    extra: str
    suffix: str

    @property
    def installed(self) -> bool:
        return importlib.util.find_spec(self.module) is not None

    @property
    def version(self) -> str:
        return importlib.metadata.version(self.package)


_ONNXRUNTIME = _Choice("onnxruntime", "onnxruntime", "onnx", ".onnx")
VISION_ENGINES = {"openvino": _Choice("openvino", "openvino", "onnx", ".onnx"), "onnxruntime": _ONNXRUNTIME}
DECODER_ENGINES = {
    "llama_cpp": _Choice("llama-cpp-python", "llama_cpp", "gguf", ".gguf"),
    "onnxruntime": _ONNXRUNTIME,
}


def open_vision(bundle: Bundle, name: str, options: EngineOptions) -> VisionEngine:
    """Load a vision engine; `auto` takes the fastest here.

    Raises:
        InputError: the engine is unknown, not installed, or cannot read this bundle.
        EngineError: it cannot load the graph; with `auto`, none can.
    """
    candidates = _candidates(bundle, "vision", name, VISION_ENGINES)
    chosen = candidates[0] if len(candidates) == 1 else _fastest_vision(bundle, candidates, options)
    path = bundle.artifact("vision", ".onnx")
    if chosen == "openvino":
        from edgevlm.runtimes.openvino import OpenVinoVision

        return OpenVinoVision(path, bundle.spec, options)
    from edgevlm.runtimes.onnxruntime import OnnxRuntimeVision

    return OnnxRuntimeVision(path, bundle.spec, options)


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
    """Load the fusion engine; None for a bundle without a fusion.

    Raises:
        BundleError: the bundle lacks its fusion graph.
        InputError: ONNX Runtime, which runs it whatever the decoder's engine, is not installed.
        EngineError: it cannot load the graph.
    """
    if bundle.spec.fusion is None:
        return None
    path = bundle.artifact("fusion", ".onnx")
    if not _ONNXRUNTIME.installed:
        raise InputError("the bundle's fusion needs ONNX Runtime", str(path), "pip install 'edgevlm[onnx]'")
    from edgevlm.runtimes.onnxruntime import OnnxRuntimeFusion

    return OnnxRuntimeFusion(path, bundle.spec, options)


def open_decoder(bundle: Bundle, name: str, options: EngineOptions) -> DecoderEngine:
    """Load a decoder engine; `auto` takes the one for the bundle's decoder.

    Raises:
        InputError: the engine is unknown, not installed, or cannot read this bundle; or an option is out of range.
        EngineError: it cannot load the decoder.
    """
    chosen = _candidates(bundle, "decoder", name, DECODER_ENGINES)[0]
    if chosen == "llama_cpp":
        from edgevlm.runtimes.llama_cpp import LlamaCppDecoder

        return LlamaCppDecoder(bundle.artifact("decoder", ".gguf"), bundle.spec.decoder, options)
    from edgevlm.runtimes.onnxruntime import OnnxRuntimeDecoder

    paths = bundle.artifact("decoder", ".onnx"), bundle.artifact("embed", ".onnx")
    return OnnxRuntimeDecoder(*paths, bundle.spec, options)


def _candidates(bundle: Bundle, role: str, name: str, engines: dict[str, _Choice]) -> list[str]:
    """The engines that may be used: the named one, or those that are installed and find what they read.

    Raises:
        InputError: there is none.
    """
    flag = f"--{role}-engine {name}"
    if name != "auto" and name not in engines:
        raise InputError(
            f"there is no {role} engine {name!r:.40}", flag, f"choose auto, {' or '.join(sorted(engines))}"
        )
    named = engines if name == "auto" else {name: engines[name]}
    readable = {key: choice for key, choice in named.items() if bundle.find(role, choice.suffix) is not None}
    if not readable:
        raise InputError(f"the bundle's {role} is not in a format for this engine", flag, f"use --{role}-engine auto")
    installed = [key for key, choice in readable.items() if choice.installed]
    if not installed:
        extra = next(iter(readable.values())).extra
        raise InputError(f"no {role} engine for this bundle is installed", flag, f"pip install 'edgevlm[{extra}]'")
    return installed


def _fastest_vision(bundle: Bundle, candidates: list[str], options: EngineOptions) -> str:
    """Measure the candidates, or remember what was measured.

    Raises:
        EngineError: none works.
    """
    entry = bundle.find("vision", ".onnx")
    assert entry is not None
    threads = thread_count(options.threads)
    versions = [f"{name} {VISION_ENGINES[name].version}" for name in candidates]
    key = memory.key("vision", entry.sha256, str(bundle.spec.vision.image_size), str(threads), *versions)
    remembered = memory.recall(key)
    if remembered in candidates:
        return remembered
    fastest = _pick(_measured(bundle, candidates, threads))
    memory.remember(key, fastest)
    return fastest


def fastest_vision_ms(bundle: Bundle) -> float:
    """Milliseconds of an image in the engine that is the fastest on all cores of this machine.

    Raises:
        InputError: no engine for the bundle's vision side is installed.
        EngineError: none works.
    """
    results = _measured(bundle, _candidates(bundle, "vision", "auto", VISION_ENGINES), thread_count(0))
    return float(results[_pick(results)]["ms"])


def _measured(bundle: Bundle, candidates: list[str], threads: int) -> dict[str, dict[str, Any]]:
    """What `measure_vision` says of each candidate that works.

    Raises:
        EngineError: none does.
    """
    results: dict[str, dict[str, Any]] = {}
    failure: EdgeVLMError | None = None
    for name in candidates:
        arguments = {"bundle": str(bundle.path), "name": name, "threads": threads}
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


def measure_vision(send: Callable[[Any], None], bundle: str, name: str, threads: int) -> dict[str, Any]:
    """Child entry point: milliseconds of the fastest of a few runs on noise, and the mean embedding.

    Says when it has loaded and run, so that slow is not taken for hung.
    """
    from edgevlm.question import GuidedVision
    from edgevlm.tile_tokens import WHOLE, encode_pixels, shares_tiles  # which imports this package

    opened = open_bundle(Path(bundle))
    pixels = np.random.default_rng(0).random(_input_shape(opened.spec), dtype=np.float32)
    boxes = WHOLE if shares_tiles(opened.spec) else None
    engine = open_vision(opened, name, EngineOptions(threads=threads))
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
