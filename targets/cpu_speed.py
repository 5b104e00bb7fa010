"""How fast this machine's memory and cores are: bandwidth, and products of matrices by type.

In: nothing but the machine. Out: `CpuSpeed`. Memory is read and written by all cores at once through numpy, in pieces
that stay in a core's cache between the two steps of a triad. Other types than float32 are multiplied through OpenVINO
where it is installed, in a process of its own, and count only if its kernels really ran in that type.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgevlm.child import Json, Send, run_child
from edgevlm.errors import EdgeVLMError
from edgevlm.targets.isa import cpu_features

_MIB = 1 << 20
_ARRAY_BYTES = 64 * _MIB
_PIECE = 16384
_SIDE = 1024
#: Fewest calls that are timed, and for how long: a short call alone catches a core while it is lent to others.
_ROUNDS, _SECONDS = 6, 0.5
_TIMEOUT_S = 120.0
#: OpenVINO's names of the types that its kernels ran in.
_KERNELS = {"int8": ("i8", "u8"), "bf16": ("bf16",), "fp16": ("f16",)}
#: Instruction sets without which a type is only imitated.
_NEEDS = {"bf16": ("avx512_bf16", "amx_bf16", "bf16"), "fp16": ("avx512_fp16", "asimdhp")}


@dataclass(frozen=True)
class CpuSpeed:
    """What was measured; the best of a few short rounds, since other programs only ever slow things down.

    Attributes:
        triad_gb_s: STREAM's triad, a = b + s c: two arrays read and one written, as STREAM counts.
        read_gb_s: reading alone, which is what decoding does.
        tera_ops: dense tera operations a second by type.
    """

    triad_gb_s: float
    read_gb_s: float
    tera_ops: dict[str, float]


def usable_cores() -> int:
    """Logical cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def measure_cpu(array_bytes: int = _ARRAY_BYTES, side: int = _SIDE) -> CpuSpeed:
    """Measure; takes a few seconds.

    Args:
        array_bytes: of each array and core, several times the last cache.
        side: rows and columns of the matrices.
    """
    cores, elements = usable_cores(), array_bytes // 4
    with ThreadPoolExecutor(cores) as pool:
        arrays = [tuple(np.full(elements, value, np.float32) for value in (0, 1, 2)) for _ in range(cores)]
        triad_s = _least(lambda: list(pool.map(_triad, arrays)))
        read_s = _least(lambda: list(pool.map(_read, arrays)))
    moved = cores * array_bytes
    return CpuSpeed(3 * moved / triad_s / 1e9, 3 * moved / read_s / 1e9, {"fp32": _float32(side), **_others(side)})


def _triad(arrays: tuple[Any, Any, Any]) -> None:
    out, first, second = arrays
    for start in range(0, out.size, _PIECE):
        piece = slice(start, start + _PIECE)
        np.multiply(second[piece], np.float32(3), out=out[piece])
        np.add(out[piece], first[piece], out=out[piece])


def _read(arrays: tuple[Any, Any, Any]) -> None:
    for array in arrays:
        array.max()


def _float32(side: int) -> float:
    left, right, out = (np.full((side, side), 0.5, np.float32) for _ in range(3))
    return 2 * side**3 / _least(lambda: np.matmul(left, right, out=out)) / 1e12


def _others(side: int) -> dict[str, float]:
    """Types that OpenVINO has kernels for here; empty without it, or where it fails."""
    if importlib.util.find_spec("openvino") is None:
        return {}
    found: dict[str, float] = {}
    features = cpu_features()
    for dtype in _KERNELS:
        if dtype in _NEEDS and not any(name in features for name in _NEEDS[dtype]):
            continue
        with contextlib.suppress(EdgeVLMError):
            rate = run_child(
                "edgevlm.targets.cpu_speed:multiply_in_child", {"dtype": dtype, "side": side}, timeout=_TIMEOUT_S
            ).value
            if rate is not None:
                found[dtype] = float(rate)
    return found


def multiply_in_child(send: Send, dtype: str, side: int) -> Json:  # noqa: ARG001 (the signature of a child's function)
    """Child entry point: tera operations a second of a product in `dtype`, or None where no kernel has this type."""
    import openvino
    from openvino import opset13 as ops

    core = openvino.Core()
    hint = {"int8": "f32", "bf16": "bf16", "fp16": "f16"}[dtype]
    given = ops.parameter([side, side], np.float32)
    weight = ops.constant(np.random.default_rng(0).uniform(-1, 1, (side, side)).astype(np.float32))
    left, right = given, weight
    if dtype == "int8":
        low, high = (ops.constant(np.array(bound, np.float32)) for bound in (-128 / 127, 1.0))
        left = ops.fake_quantize(given, low, high, low, high, 256)
        low = ops.constant(np.array(-1.0, np.float32))
        right = ops.fake_quantize(weight, low, high, low, high, 255)
    model = openvino.Model([ops.matmul(left, right, False, True)], [given], "product")
    options = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": str(usable_cores())}
    compiled = core.compile_model(model, "CPU", options)
    if not _ran_in(compiled, _KERNELS[dtype]):
        return None
    request = compiled.create_infer_request()
    request.set_input_tensor(openvino.Tensor(np.full((side, side), 0.5, np.float32)))
    return 2 * side**3 / _least(request.infer) / 1e12


def _ran_in(compiled: Any, names: tuple[str, ...]) -> bool:
    """Whether the product's kernel takes one of these types."""
    for node in compiled.get_runtime_model().get_ordered_ops():
        info = node.get_rt_info()
        if info["layerType"].astype(str) in ("FullyConnected", "MatMul"):
            imitated = "ref" in info["primitiveType"].astype(str)
            return info["runtimePrecision"].astype(str) in names and not imitated
    return False


def _least(call: Callable[[], object]) -> float:
    """Seconds of the fastest call of at least `_ROUNDS` and `_SECONDS`, behind one that is not counted."""
    call()
    took: list[float] = []
    while len(took) < _ROUNDS or sum(took) < _SECONDS:
        start = time.perf_counter()
        call()
        took.append(time.perf_counter() - start)
    return min(took)
