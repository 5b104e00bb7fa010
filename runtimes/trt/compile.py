"""Compiling one graph into one engine, in a child process: the builders are large native programs.

In: an ONNX file, its part of the build plan, and what to build for. Out: the engine's bytes in a file. The child says
which phase of the build it is in, so that a long build is not taken for a hung one.
"""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from typing import Any

from edgevlm.child import Json, Send
from edgevlm.errors import EngineError, UnsupportedError
from edgevlm.runtimes.build_plan import ComponentPlan
from edgevlm.runtimes.trt.library import load_library, open_log

_LINT = "see what the parser refuses: edgevlm lint BUNDLE --target NAME"


def compile_engine(
    send: Send,
    library: str,
    graph: str,
    component: Json,
    out: str,
    compute_capability: str,
    workspace_bytes: int,
    timing_cache: str,
) -> Json:
    """Child entry point: write the engine of `graph` to `out`; returns its size in bytes.

    Args:
        send: told the phases of the build.
        library: `tensorrt` or `tensorrt_rtx`.
        graph: the ONNX file.
        component: its `ComponentPlan` as JSON.
        out: where the engine goes.
        compute_capability: such as `8.6`; tensorrt-rtx builds for it without having it.
        workspace_bytes: what the builder may try kernels with.
        timing_cache: file of kernel timings to start from and to add to; empty for none.

    Raises:
        EngineError: the library refuses the graph, or finds no kernels for it.
        UnsupportedError: tensorrt-rtx does not build for this compute capability.
    """
    plan = ComponentPlan.model_validate(component)
    trt = load_library("tensorrt_rtx" if library == "tensorrt_rtx" else "tensorrt")
    logger, log = open_log(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    send({"phase": "reading the graph", "done": 0, "total": 1})
    if not parser.parse_from_file(graph):
        raise EngineError(f"{library} cannot read the graph: {_first_error(parser)}", graph, _LINT)

    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_bytes)
    config.progress_monitor = _monitor(trt, send)
    for profile in plan.profiles:
        if not profile.shapes:
            continue
        ranges = builder.create_optimization_profile()
        for span in profile.shapes:
            ranges.set_shape(span.tensor, span.min, span.opt, span.max)
        if config.add_optimization_profile(ranges) < 0:
            raise EngineError(f"{library} refuses the shapes of profile {profile.name}: {_last(log)}", graph, _LINT)
    if library == "tensorrt_rtx":
        _choose_capability(trt, config, compute_capability)
    cache = _open_timing_cache(config, timing_cache) if timing_cache else None

    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise EngineError(f"{library} cannot build the engine: {_last(log)}", graph, _LINT)
    with Path(out).open("wb") as file:
        file.write(memoryview(engine))
    if cache is not None:
        # Timings only save time; a cache that cannot be written is none.
        with contextlib.suppress(OSError):
            Path(timing_cache).write_bytes(memoryview(cache.serialize()))
    return Path(out).stat().st_size


def _first_error(parser: Any) -> str:
    if not parser.num_errors:
        return "no reason given"
    error = parser.get_error(0)
    return f"{error.node_operator()} {error.node_name()}: {' '.join(error.desc().split())[:200]}"


def _last(log: Any) -> str:
    return log[-1] if log else "no reason given"


def _choose_capability(trt: Any, config: Any, capability: str) -> None:
    name = f"SM{capability.replace('.', '')}"
    known = trt.ComputeCapability.__members__
    if name not in known:
        there = ", ".join(sorted(other for other in known if other.startswith("SM")))
        raise UnsupportedError(f"tensorrt-rtx does not build for {name}", "--target", f"it builds for {there}")
    config.num_compute_capabilities = 1
    config.set_compute_capability(known[name], 0)


def _open_timing_cache(config: Any, path: str) -> Any:
    """The cache of kernel timings; a file that is no such cache, or another device's, is left out."""
    try:
        content = Path(path).read_bytes()
    except OSError:
        content = b""
    cache = config.create_timing_cache(content)
    if cache is None or not config.set_timing_cache(cache, False):
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, False)
    return cache


def _monitor(trt: Any, send: Send) -> Any:
    """A monitor that sends each phase and step; the builder calls it from several threads."""
    lock = threading.Lock()

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:  # noqa: ARG002
            with lock:
                self._steps[phase_name] = num_steps
                send({"phase": phase_name, "done": 0, "total": num_steps})

        def step_complete(self, phase_name: str, step: int) -> bool:
            with lock:
                send({"phase": phase_name, "done": step + 1, "total": self._steps.get(phase_name, step + 1)})
            return True

        def phase_finish(self, phase_name: str) -> None:
            with lock:
                self._steps.pop(phase_name, None)

    return Monitor()
