"""A GPU that is none: CUDA's runtime over host memory, and a TensorRT whose engines run their graph in ONNX Runtime.

Only the documented calls that EdgeVLM makes are here, and they are strict where the real ones are: what is put into a
stream happens when somebody waits, copies stay inside one allocation, a run needs every address and shape, shapes stay
inside their profile, and a recorded graph keeps the addresses and shapes of its recording.
"""

# ruff: noqa: N801, N802, N815 (CUDA's own names)

import ctypes
import enum
import importlib.machinery
import json
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from edgevlm.runtimes.build_plan import ComponentPlan

VERSION = "10.16.0"
_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}
Work = Callable[[], None]


class _Code(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35


@dataclass
class _Stream:
    waiting: list[Work] = field(default_factory=list)
    recorded: list[Work] | None = None

    def put(self, work: Work) -> None:
        (self.waiting if self.recorded is None else self.recorded).append(work)


class FakeCuda:
    """The module `cuda.bindings.runtime`.

    Attributes:
        blocks: what is allocated, address -> its bytes.
        launches: recorded graphs that were run.
    """

    class cudaMemcpyKind(enum.IntEnum):
        cudaMemcpyHostToDevice = 1
        cudaMemcpyDeviceToHost = 2
        cudaMemcpyDeviceToDevice = 3

    class cudaStreamCaptureMode(enum.IntEnum):
        cudaStreamCaptureModeThreadLocal = 1

    def __init__(self, devices: int = 1, capability: tuple[int, int] = (8, 7), memory: int = 1 << 30) -> None:
        self.devices, self.capability, self.memory = devices, capability, memory
        self.blocks: dict[int, np.ndarray[Any, Any]] = {}
        self.launches = 0

    def cudaGetDeviceCount(self) -> tuple[Any, ...]:
        return (_Code.cudaSuccess, self.devices) if self.devices else (_Code.cudaErrorInsufficientDriver, None)

    def cudaSetDevice(self, device: int) -> tuple[Any, ...]:
        return (_Code.cudaSuccess if device < self.devices else _Code.cudaErrorInvalidValue,)

    def cudaGetDeviceProperties(self, device: int) -> tuple[Any, ...]:
        del device
        major, minor = self.capability
        shown = types.SimpleNamespace(name=b"Pretended GPU", major=major, minor=minor, totalGlobalMem=self.memory)
        return _Code.cudaSuccess, shown

    def cudaStreamCreate(self) -> tuple[Any, ...]:
        return _Code.cudaSuccess, _Stream()

    def cudaStreamDestroy(self, stream: _Stream) -> tuple[Any, ...]:
        assert stream.recorded is None
        return (_Code.cudaSuccess,)

    def cudaMalloc(self, size: int) -> tuple[Any, ...]:
        if sum(block.nbytes for block in self.blocks.values()) + size > self.memory:
            return _Code.cudaErrorMemoryAllocation, None
        block = np.full(size, 0xA5, np.uint8)
        self.blocks[block.ctypes.data] = block
        return _Code.cudaSuccess, block.ctypes.data

    def cudaFree(self, address: int) -> tuple[Any, ...]:
        del self.blocks[address]
        return (_Code.cudaSuccess,)

    def inside(self, address: int, size: int) -> bool:
        """Whether a range lies in one allocation."""
        return any(start <= address and address + size <= start + block.nbytes for start, block in self.blocks.items())

    def cudaMemsetAsync(self, address: int, value: int, size: int, stream: _Stream) -> tuple[Any, ...]:
        assert self.inside(address, size)
        stream.put(lambda: _ignore(ctypes.memset(address, value, size)))
        return (_Code.cudaSuccess,)

    def cudaMemcpyAsync(self, target: int, source: int, size: int, kind: int, stream: _Stream) -> tuple[Any, ...]:
        if kind != self.cudaMemcpyKind.cudaMemcpyDeviceToHost:
            assert self.inside(target, size), "a copy leaves its allocation"
        if kind != self.cudaMemcpyKind.cudaMemcpyHostToDevice:
            assert self.inside(source, size), "a copy leaves its allocation"
        stream.put(lambda: _ignore(ctypes.memmove(target, source, size)))
        return (_Code.cudaSuccess,)

    def cudaStreamSynchronize(self, stream: _Stream) -> tuple[Any, ...]:
        assert stream.recorded is None, "waiting is not allowed while a graph is recorded"
        while stream.waiting:
            stream.waiting.pop(0)()
        return (_Code.cudaSuccess,)

    def cudaStreamBeginCapture(self, stream: _Stream, mode: int) -> tuple[Any, ...]:
        del mode
        stream.recorded = []
        return (_Code.cudaSuccess,)

    def cudaStreamEndCapture(self, stream: _Stream) -> tuple[Any, ...]:
        recorded, stream.recorded = stream.recorded, None
        return _Code.cudaSuccess, recorded

    def cudaGraphInstantiate(self, graph: list[Work], flags: int) -> tuple[Any, ...]:
        del flags
        return _Code.cudaSuccess, list(graph)

    def cudaGraphDestroy(self, graph: list[Work]) -> tuple[Any, ...]:
        graph.clear()
        return (_Code.cudaSuccess,)

    def cudaGraphLaunch(self, graph: list[Work], stream: _Stream) -> tuple[Any, ...]:
        self.launches += 1
        for work in graph:
            stream.put(work)
        return (_Code.cudaSuccess,)

    def cudaGraphExecDestroy(self, graph: list[Work]) -> tuple[Any, ...]:
        graph.clear()
        return (_Code.cudaSuccess,)


def _ignore(value: object) -> None:
    del value


def engine_bytes(graph: Path, component: ComponentPlan) -> bytes:
    """What the fake TensorRT takes for an engine."""
    return json.dumps({"graph": str(graph), "component": component.model_dump(mode="json")}).encode()


class _Logger:
    class Severity(enum.IntEnum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2

    def __init__(self) -> None:
        pass

    def log(self, severity: Any, message: str) -> None:
        raise NotImplementedError


class _Runtime:
    def __init__(self, logger: _Logger) -> None:
        self.logger = logger

    def deserialize_cuda_engine(self, data: bytes) -> "_Engine | None":
        try:
            content = json.loads(data)
        except ValueError:
            self.logger.log(_Logger.Severity.ERROR, "Serialization assertion failed: magic tag does not match")
            return None
        return _Engine(content["graph"], ComponentPlan.model_validate(content["component"]))


class _Engine:
    def __init__(self, graph: str, plan: ComponentPlan) -> None:
        self.plan = plan
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        self.inputs = {item.name: item for item in self.session.get_inputs()}
        self.outputs = {item.name: item for item in self.session.get_outputs()}
        self._names = [*self.inputs, *self.outputs]
        self.num_io_tensors = len(self._names)

    def get_tensor_name(self, index: int) -> str:
        return self._names[index]

    def create_execution_context(self) -> "_Context":
        return _Context(self)


class _Context:
    """An execution context; profile 0 until another is chosen."""

    def __init__(self, engine: _Engine) -> None:
        self._engine = engine
        self._profile = 0
        self._addresses: dict[str, int] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}

    def set_optimization_profile_async(self, index: int, stream: _Stream) -> bool:
        del stream
        self._profile = index
        self._shapes = {}
        return index < len(self._engine.plan.profiles)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        (span,) = [span for span in self._engine.plan.profiles[self._profile].shapes if span.tensor == name]
        if not all(low <= size <= high for low, size, high in zip(span.min, shape, span.max, strict=True)):
            return False
        self._shapes[name] = tuple(shape)
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        """Fixed sizes as they are; named ones as the inputs have them, -1 where that is not known."""
        if name in self._shapes:
            return self._shapes[name]
        known = {
            axis: size
            for tensor, shape in self._shapes.items()
            for axis, size in zip(self._engine.inputs[tensor].shape, shape, strict=True)
            if isinstance(axis, str)
        }
        declared = (self._engine.inputs.get(name) or self._engine.outputs[name]).shape
        return tuple(size if isinstance(size, int) else known.get(size, -1) for size in declared)

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert name in self._engine.inputs or name in self._engine.outputs
        self._addresses[name] = address
        return True

    def execute_async_v3(self, stream: _Stream) -> bool:
        engine, addresses = self._engine, dict(self._addresses)
        shapes = {name: self.get_tensor_shape(name) for name in engine.inputs}
        if any(size < 0 for shape in shapes.values() for size in shape):
            return False
        if set(addresses) != {*engine.inputs, *engine.outputs}:
            return False

        def run() -> None:
            feed = {name: _at(addresses[name], shapes[name], item.type).copy() for name, item in engine.inputs.items()}
            for name, value in zip(engine.outputs, engine.session.run(None, feed), strict=True):
                assert CURRENT.cuda.inside(addresses[name], value.nbytes), f"{name} is written past its allocation"
                _at(addresses[name], value.shape, engine.outputs[name].type)[...] = value

        stream.put(run)
        return True


def _at(address: int, shape: tuple[int, ...], kind: str) -> np.ndarray[Any, Any]:
    """The array at an address."""
    dtype = np.dtype(_TYPES[kind])
    size = int(np.prod(shape)) * dtype.itemsize
    return np.frombuffer((ctypes.c_uint8 * size).from_address(address), dtype).reshape(shape)


class CURRENT:
    """The GPU that `install` put in place; engines check their outputs against its allocations."""

    cuda: FakeCuda


def install(monkeypatch: pytest.MonkeyPatch, cuda: FakeCuda, version: str = VERSION) -> None:
    """Let `cuda.bindings.runtime` and `tensorrt` be the pretended ones, and no other TensorRT be installed."""
    from edgevlm.runtimes import tensorrt as engines

    CURRENT.cuda = cuda
    module = types.ModuleType("tensorrt")
    module.__spec__ = importlib.machinery.ModuleSpec("tensorrt", None)
    module.__dict__.update(__version__=version, ILogger=_Logger, Runtime=_Runtime)
    bindings = types.ModuleType("cuda.bindings")
    bindings.__dict__["runtime"] = cuda
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    monkeypatch.setitem(sys.modules, "cuda", types.ModuleType("cuda"))
    monkeypatch.setitem(sys.modules, "cuda.bindings", bindings)
    monkeypatch.setattr(engines, "installed", lambda library: library == "tensorrt")
