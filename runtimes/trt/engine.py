"""One TensorRT engine on the GPU: a context for each profile, and the addresses of its inputs and outputs.

In: an engine file that its card vouches for, and its part of the build plan. Out: runs of it in CUDA's order. Nothing
is allocated after loading; contexts of several profiles share the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgevlm.errors import BundleError, EngineError
from edgevlm.runtimes.build_plan import PLAN, ComponentPlan, ProfilePlan, Sizes, tensor_bytes
from edgevlm.runtimes.trt.cards import EngineCard
from edgevlm.runtimes.trt.cuda import Cuda
from edgevlm.runtimes.trt.library import load_library, open_log

_HINT = "build it again: edgevlm build BUNDLE --target NAME"


class Engine:
    """A loaded engine.

    Attributes:
        addresses: of inputs and outputs on the GPU; those of the cache are set by whoever owns it.
    """

    def __init__(
        self, path: Path, card: EngineCard, plan: ComponentPlan, cuda: Cuda, largest: Mapping[str, Sizes] | None = None
    ) -> None:
        """Load it, and allocate inputs and outputs but for the cache.

        `largest` has the shapes, at their largest, of outputs whose shapes the caller knows and the engine may not.

        Raises:
            EngineError: the library is missing, refuses the engine, or the GPU has too little memory.
            BundleError: the engine's inputs and outputs are not those of the plan.
        """
        self.plan = plan
        self.addresses: dict[str, int] = {}
        self._cuda, self._path, self._largest = cuda, str(path), largest or {}
        self._owned: list[int] = []
        trt = load_library(card.library)
        self._logger, self._log = open_log(trt)
        self._runtime = trt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            raise self._failed("TensorRT refuses the engine")
        self._contexts: dict[str, Any] = {}
        try:
            self._check_tensors()
            for number, profile in enumerate(plan.profiles):
                self._contexts[profile.name] = self._open_context(number, profile)
            self._allocate()
        # Raised again, whatever it is: memory of the GPU is freed by hand.
        except BaseException:
            self.close()
            raise

    def _check_tensors(self) -> None:
        names = {self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)}
        planned = {tensor.name for tensor in (*self.plan.inputs, *self.plan.outputs)}
        if names != planned:
            odd = sorted(names ^ planned)[0]
            raise BundleError(f"engine and build plan differ in {odd!r:.80}", self._path, _HINT)

    def _open_context(self, number: int, profile: ProfilePlan) -> Any:
        context = self._engine.create_execution_context()
        if context is None:
            raise self._failed("TensorRT cannot make a context, most likely for want of GPU memory")
        if number and not context.set_optimization_profile_async(number, self._cuda.stream):
            raise self._failed(f"TensorRT refuses profile {profile.name}")
        self._cuda.wait()
        for span in profile.shapes:
            self._set_shape(context, span.tensor, span.max)
        return context

    def _allocate(self) -> None:
        """Room for the largest shapes of any profile."""
        cached = {name for entry in self.plan.cache for name in (entry.past, entry.present)}
        for tensor in (*self.plan.inputs, *self.plan.outputs):
            if tensor.name not in cached:
                known = self._largest.get(tensor.name)
                shapes = [known or self.shape(profile.name, tensor.name) for profile in self.plan.profiles]
                self.addresses[tensor.name] = self.allocate(max(1, *(tensor_bytes(tensor, shape) for shape in shapes)))
        for name, address in self.addresses.items():
            self.bind(name, address)

    def allocate(self, size: int) -> int:
        """`size` bytes of zeros on the GPU, freed with the engine."""
        address = self._cuda.allocate(size)
        self._owned.append(address)
        return address

    def shape(self, profile: str, name: str) -> Sizes:
        """The shape that a tensor has in a profile, with the input shapes set last.

        Raises:
            EngineError: it is not known before the engine runs.
        """
        shape = tuple(int(size) for size in self._contexts[profile].get_tensor_shape(name))
        if any(size < 0 for size in shape):
            raise self._failed(f"the shape of {name} is not known before the engine runs")
        return shape

    def bind(self, name: str, address: int) -> None:
        """Let all profiles read or write a tensor at an address."""
        self.addresses[name] = address
        for context in self._contexts.values():
            if not context.set_tensor_address(name, address):
                raise self._failed(f"TensorRT refuses the address of {name}")

    def set_shape(self, profile: str, name: str, shape: Sizes) -> None:
        """Say what shape an input will have."""
        self._set_shape(self._contexts[profile], name, shape)

    def _set_shape(self, context: Any, name: str, shape: Sizes) -> None:
        if not context.set_input_shape(name, shape):
            raise self._failed(f"TensorRT refuses {name} with shape {shape}")

    def enqueue(self, profile: str) -> None:
        """Put a run into the stream."""
        if not self._contexts[profile].execute_async_v3(self._cuda.stream):
            raise self._failed(f"the {self.plan.role} engine failed")

    def capturable(self, profile: str) -> bool:
        """Whether a run of a profile may be recorded as a CUDA graph; libraries that do not tell can."""
        tells = getattr(self._contexts[profile], "is_stream_capturable", None)
        return tells is None or bool(tells(self._cuda.stream))

    def close(self) -> None:
        """Free contexts, weights and buffers."""
        self._contexts = {}
        self._engine = self._runtime = None
        while self._owned:
            self._cuda.free(self._owned.pop())

    def _failed(self, what: str) -> EngineError:
        reason = f": {self._log[-1]}" if self._log else ""
        return EngineError(f"{what}{reason}", self._path, _HINT)


def longest(plan: ComponentPlan, profile: str, name: str) -> int:
    """The most positions (axis 1) that an input may have in a profile.

    Raises:
        BundleError: the plan does not say.
    """
    for span in (span for each in plan.profiles if each.name == profile for span in each.shapes):
        if span.tensor == name:
            return span.max[1]
    raise BundleError(f"the build plan has no range of {name} in profile {profile}", PLAN, _HINT)
