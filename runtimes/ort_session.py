"""ONNX Runtime's sessions: settings, execution providers, and arrays bound in place.

In: a graph's file, threads and a device. Out: a session that runs on that device, or three lines that say what this
build of ONNX Runtime lacks. Where a provider does not load, ONNX Runtime would go on with another without a word.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edgevlm.errors import EngineError
from edgevlm.runtimes.base import EngineStats, Float32
from edgevlm.runtimes.build_plan import ComputeType
from edgevlm.runtimes.checks import engine_errors
from edgevlm.runtimes.device import Device
from edgevlm.runtimes.onnx_widening import StoredFloats, widen

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
#: Optimizers that fail on float16 values: this one reads a scale as float32 (ONNX Runtime 1.31, FastViTHD's attention).
_HALF_TROUBLES = ("AttentionFusion",)
_BUILDS = "pip install onnxruntime-gpu in place of onnxruntime; on a Jetson, the wheel for its JetPack (docs/jetson.md)"


def providers_for(device: Device, *, auto: str = CPU) -> list[tuple[str, dict[str, Any]]]:
    """Execution providers in order, with their settings.

    Args:
        device: what was asked for.
        auto: the provider that `auto` takes where this build has it.

    Raises:
        InputError: this build of ONNX Runtime does not have the device.
    """
    import onnxruntime

    there = onnxruntime.get_available_providers()
    wanted = {"auto": auto, "cpu": CPU, "cuda": CUDA, "tensorrt": TENSORRT}[device.kind]
    if wanted not in there:
        if device.kind == "auto":
            return [(CPU, {})]
        has = ", ".join(name.removesuffix("ExecutionProvider") for name in there)
        raise device.refused(f"this build of ONNX Runtime has no {device.kind}; it has {has}", _BUILDS)
    gpu = {"device_id": device.index}
    if wanted == TENSORRT:
        return [(TENSORRT, gpu), *([(CUDA, gpu)] if CUDA in there else []), (CPU, {})]
    return [(wanted, gpu), (CPU, {})] if wanted == CUDA else [(CPU, {})]


def open_session(
    path: Path,
    threads: int,
    config: dict[str, str],
    device: Device,
    *,
    low_memory: bool = False,
    auto: str = CPU,
    compute: ComputeType = "float32",
) -> Any:
    """A session with every graph optimisation and without denormals, which slow some CPUs tenfold.

    With `low_memory`, weights stay in their mapped file: they are neither folded behind a cast nor packed. The highest
    level of optimisation would fold them, too. Optimizers that fail on
    what the graph computes in are left out, and bfloat16 is widened to float32 (`runtimes.onnx_widening`).

    Raises:
        BundleError: a graph in bfloat16 is broken.
        InputError: this build does not have the device.
        EngineError: ONNX Runtime refuses the graph, or cannot use the device.
    """
    import onnxruntime

    onnxruntime.disable_telemetry_events()
    providers = providers_for(device, auto=auto)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_EXTENDED if low_memory else levels.ORT_ENABLE_ALL
    options.log_severity_level = 3
    packing = {"session.disable_prepacking": "1"} if low_memory else {}
    for key, value in {"session.set_denormal_as_zero": "1", **packing, **config}.items():
        options.add_session_config_entry(key, value)
    troubles = _HALF_TROUBLES if compute == "float16" else ()
    skipped = [*(["ConstantFolding"] if low_memory else []), *troubles] or None
    source: str | bytes = str(path)
    kept: list[Float32] = []
    if compute == "bfloat16":
        source, tensors = widen(path)
        kept = _given(options, tensors, path)
    with engine_errors("ONNX Runtime cannot load this graph", str(path)):
        session = onnxruntime.InferenceSession(source, options, providers=providers, disabled_optimizers=skipped)
    # ONNX Runtime does not hold them.
    session.edgevlm_kept = kept
    if device.is_gpu and session.get_providers()[0] != providers[0][0]:
        what = f"ONNX Runtime could not start {providers[0][0]} and would compute on the CPU"
        raise EngineError(what, f"--device {device}", "check the driver and CUDA libraries, or take --device cpu")
    return session


def _given(options: Any, tensors: tuple[StoredFloats, ...], path: Path) -> list[Float32]:
    """Let a session read tensors of a graph in memory where they lie, and find all others in the graph's folder."""
    from onnxruntime import OrtValue

    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
    arrays = [tensor.read() for tensor in tensors]
    values = [OrtValue.ortvalue_from_numpy(array) for array in arrays]
    options.add_external_initializers([tensor.name for tensor in tensors], values)
    return arrays


def bind_input(binding: Any, name: str, array: NDArray[Any]) -> None:
    """Bind a C-contiguous array, or the front of one, in place; the caller keeps it alive."""
    binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)


def bind_output(binding: Any, name: str, array: NDArray[Any]) -> None:
    """Likewise for what is written."""
    binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)


def session_stats(session: Any, threads: int) -> EngineStats:
    """Version, provider and threads."""
    import onnxruntime

    details = {"provider": session.get_providers()[0], "threads": str(threads)}
    return EngineStats(f"onnxruntime {onnxruntime.__version__}", details)
