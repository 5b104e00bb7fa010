"""The few calls of the CUDA runtime that an engine needs, over cuda-python.

In: sizes, arrays and addresses. Out: addresses on the GPU, streams and graphs. Every call is checked; a failure is one
line with CUDA's own name for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

from edgevlm.errors import EngineError
from edgevlm.runtimes.trt.library import Gpu

_NO_GPU = "run this where there is an NVIDIA GPU and its driver; `edgevlm doctor` shows what this machine has"
_INSTALL = "pip install cuda-python, of the major version of this machine's CUDA"


class Cuda:
    """CUDA on one device, with one stream.

    Raises:
        EngineError: cuda-python is not installed, or there is no such device.
    """

    def __init__(self, device: int = 0) -> None:
        try:
            from cuda.bindings import runtime
        except ImportError as error:
            raise EngineError("cuda-python is not installed", "TensorRT", _INSTALL) from error
        self._runtime = runtime
        code, count = runtime.cudaGetDeviceCount()
        if int(code) != 0 or device >= count:
            reason = self._name(code) if int(code) != 0 else f"{count} of them"
            raise EngineError(f"there is no CUDA GPU here to run TensorRT on ({reason})", f"cuda:{device}", _NO_GPU)
        self._check(runtime.cudaSetDevice(device))
        properties = self._check(runtime.cudaGetDeviceProperties(device))
        name = properties.name.decode() if isinstance(properties.name, bytes) else str(properties.name)
        capability = (int(properties.major), int(properties.minor))
        self.gpu = Gpu(name.strip("\0"), capability, int(properties.totalGlobalMem))
        self.stream = self._check(runtime.cudaStreamCreate())

    def allocate(self, size: int) -> int:
        """Address of `size` bytes of zeros on the GPU."""
        address = int(self._check(self._runtime.cudaMalloc(size)))
        self._check(self._runtime.cudaMemsetAsync(address, 0, size, self.stream))
        return address

    def free(self, address: int) -> None:
        """Give memory of `allocate` back."""
        self._check(self._runtime.cudaFree(address))

    def upload(self, address: int, array: NDArray[Any]) -> None:
        """Copy a C-contiguous array to the GPU, in the order of the stream; the caller keeps it until `wait`."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._check(self._runtime.cudaMemcpyAsync(address, array.ctypes.data, array.nbytes, kind, self.stream))

    def download(self, array: NDArray[Any], address: int) -> None:
        """Copy from the GPU into an array, in the order of the stream; it is filled after `wait`."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._check(self._runtime.cudaMemcpyAsync(array.ctypes.data, address, array.nbytes, kind, self.stream))

    def copy(self, target: int, source: int, size: int) -> None:
        """Copy on the GPU, in the order of the stream."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self._check(self._runtime.cudaMemcpyAsync(target, source, size, kind, self.stream))

    def wait(self) -> None:
        """Wait until everything in the stream is done."""
        self._check(self._runtime.cudaStreamSynchronize(self.stream))

    def capture(self, work: Callable[[], None]) -> Any:
        """Record what `work` puts into the stream as a graph, without running it.

        Raises:
            EngineError: the work cannot be recorded.
        """
        runtime = self._runtime
        mode = runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._check(runtime.cudaStreamBeginCapture(self.stream, mode))
        try:
            work()
        finally:
            # Ended whatever happened, or the stream stays useless.
            ended = runtime.cudaStreamEndCapture(self.stream)
        graph = self._check(ended)
        executable = self._check(runtime.cudaGraphInstantiate(graph, 0))
        self._check(runtime.cudaGraphDestroy(graph))
        return executable

    def launch(self, graph: Any) -> None:
        """Run a recorded graph in the stream."""
        self._check(self._runtime.cudaGraphLaunch(graph, self.stream))

    def forget(self, graph: Any) -> None:
        """Free a recorded graph."""
        self._check(self._runtime.cudaGraphExecDestroy(graph))

    def close(self) -> None:
        """Free the stream."""
        self._check(self._runtime.cudaStreamDestroy(self.stream))

    def _check(self, result: tuple[Any, ...]) -> Any:
        code, *values = result
        if int(code) != 0:
            raise EngineError(f"CUDA failed: {self._name(code)}", "the GPU", "free GPU memory, or restart the device")
        return values[0] if values else None

    def _name(self, code: Any) -> str:
        return str(getattr(code, "name", code))


def find_gpu() -> Gpu | None:
    """The first CUDA device, or None where there is none or cuda-python is missing."""
    try:
        cuda = Cuda()
    except EngineError:
        return None
    cuda.close()
    return cuda.gpu
