"""The decoder of a TensorRT bundle in ONNX Runtime: how its graphs are verified, and run, where there is no GPU.

In: the graphs of the standard dialect (docs/tensorrt.md), whose key/value cache has a fixed length. Out: the decoder
engine of `runtimes.base`. The cache is bound to past and present at once, as a TensorRT engine that updates in place
has it. Float16 is computed in float32 where ONNX Runtime's CPU kernels have no other, and bfloat16 throughout.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import BundleError, InputError
from edgevlm.heap import trim_heap
from edgevlm.runtimes.base import EngineOptions, EngineStats, Float32, Int32, Segment
from edgevlm.runtimes.build_plan import BuildPlan, ComponentPlan, Role, TensorPlan
from edgevlm.runtimes.checks import HINT, check_fits, check_own_cache, engine_errors, thread_count
from edgevlm.runtimes.device import Device
from edgevlm.runtimes.ort_session import bind_input, bind_output, open_session, session_stats
from edgevlm.runtimes.positions import RotaryPositions, flat
from edgevlm.spec import ModelSpec

#: Bytes of memory that must be free for one of weights of 4 bits: float32 of each, twice while it is made.
_WIDENED = 16


class OnnxRuntimeStaticDecoder:
    """The decoder through graphs whose cache has a fixed length."""

    def __init__(self, folder: Path, plan: BuildPlan, spec: ModelSpec, options: EngineOptions) -> None:
        """Load both graphs and allocate the key/value buffers.

        Args:
            folder: the bundle's.
            plan: its build plan.
            spec: of the model.
            options: threads and context length, which may be shorter than the cache.

        Raises:
            BundleError: the plan or the graphs are not those of this model.
            InputError: the context asked for is longer than the cache.
            EngineError: ONNX Runtime refuses a graph.
        """
        check_own_cache(options, "a TensorRT bundle")
        decoder, embed = _component(plan, "decoder", folder), _component(plan, "embed", folder)
        numbers = spec.decoder
        self.vocab_size = numbers.vocab_size
        self.context_length = options.context_length or plan.kv_length
        if not 0 < self.context_length <= plan.kv_length:
            what = f"the bundle was exported for a context of {plan.kv_length} positions, not {self.context_length}"
            raise InputError(what, "context_length", f"give 1 to {plan.kv_length}, or export with --context-length")
        self.position = 0
        self._threads = thread_count(options.threads)
        graph = folder / decoder.graph
        self._session = open_session(graph, self._threads, _settings(decoder), Device("cpu"), compute=decoder.compute)
        self._embed = open_session(folder / embed.graph, 1, _settings(embed), Device("cpu"), compute=embed.compute)
        self._check_inputs(decoder, numbers.num_hidden_layers, graph)
        tensors = {tensor.name: tensor for tensor in decoder.inputs}
        self._cache = {entry: _zeros(tensors[entry.past]) for entry in decoder.cache}
        self._begin = np.zeros(1, np.int64)
        self._rotary = RotaryPositions(self.context_length) if numbers.rope_sections else None
        self._hidden = numbers.hidden_size
        self._logits: Float32 = np.empty((1, 1, self.vocab_size), np.float32)

    def _check_inputs(self, decoder: ComponentPlan, layers: int, path: Path) -> None:
        found = {item.name for item in self._session.get_inputs()}
        missing = [tensor.name for tensor in decoder.inputs if tensor.name not in found]
        if missing or len(decoder.cache) != 2 * layers:
            what = f"no input {missing[0]}" if missing else f"a cache for {len(decoder.cache) // 2} layers"
            raise BundleError(f"the decoder graph has {what}", str(path), HINT)

    def _append(self, embeddings: Float32, positions: NDArray[np.int64] | None, what: str) -> Float32:
        """Run with `[1, S, H]` behind what is in the cache; returns the logits, in a buffer that is used again."""
        binding = self._session.io_binding()
        self._begin[0] = self.position
        bind_input(binding, "inputs_embeds", embeddings)
        bind_input(binding, "write_indices", self._begin)
        if positions is not None:
            bind_input(binding, "position_ids", positions)
        for entry, buffer in self._cache.items():
            bind_input(binding, entry.past, buffer)
            bind_output(binding, entry.present, buffer)
        bind_output(binding, "logits", self._logits)
        with engine_errors(what):
            self._session.run_with_iobinding(binding)
        self.position += embeddings.shape[1]
        return self._logits.reshape(-1)

    def prefill(self, segments: list[Segment]) -> Float32:
        """Append the segments in one run; return the logits `[V]` of the last position.

        Raises:
            EngineError: the runtime failed.
            InputError: the segments do not fit into the context.
        """
        rows = flat(segments)
        check_fits(self.position, sum(map(len, rows)), self.context_length)
        parts = [row if row.ndim == 2 else self.embed(row.astype(np.int32)) for row in rows]
        embeddings = np.ascontiguousarray(np.concatenate(parts)[None], np.float32)
        positions = None
        if self._rotary is not None:
            positions = np.ascontiguousarray(self._rotary.append(self.position, segments)[:, None])
        return self._append(embeddings, positions, "the decoder failed on the prompt").copy()

    def embed(self, ids: Int32) -> Float32:
        """Embeddings `[L, hidden]` of token ids `[L]`.

        Raises:
            EngineError: the runtime failed.
        """
        with engine_errors("the embedding graph failed"):
            rows = self._embed.run(None, {"input_ids": np.asarray(ids, np.int64)[None]})[0]
        return np.asarray(rows[0], np.float32)

    def decode(self, token: int) -> Float32:
        """Append one token; return the logits `[V]` after it, in a buffer that the next call reuses.

        Raises:
            EngineError: the runtime failed.
            InputError: the context is full.
        """
        check_fits(self.position, 1, self.context_length)
        embeddings = self.embed(np.array([token], np.int32))[None]
        positions = None
        if self._rotary is not None:
            positions = np.full((3, 1, 1), self._rotary.advance(self.position), np.int64)
        return self._append(embeddings, positions, "the decoder failed on a token")

    @property
    def cache_bytes(self) -> int:
        """Keys and values of the whole cache."""
        return sum(buffer.nbytes for buffer in self._cache.values())

    def reset(self, keep: int = 0) -> None:
        """Forget all positions from `keep` on: what lies behind is overwritten before it is read."""
        if not 0 <= keep <= self.position:
            raise ValueError(f"cannot keep {keep} of {self.position} positions")
        self.position = keep

    def stats(self) -> EngineStats:
        """Name, version and settings."""
        return session_stats(self._session, self._threads)

    def close(self) -> None:
        """Free the sessions and the cache."""
        self._session = self._embed = None
        self._cache = {}
        trim_heap()


def _component(plan: BuildPlan, role: Role, folder: Path) -> ComponentPlan:
    component = plan.component(role)
    if component is None:
        raise BundleError(f"the build plan has no {role}", str(folder), HINT)
    return component


def _settings(component: ComponentPlan) -> dict[str, str]:
    """How narrow weights are computed with: widened once, where memory is plenty, or else in each run.

    Then INT4 products would round activations to int8, which TensorRT does not, were it not for the level.
    """
    import psutil

    widened = _WIDENED * component.weight_bytes < psutil.virtual_memory().available
    return {"session.disable_quant_qdq": "1"} if widened else {"session.qdq_matmulnbits_accuracy_level": "1"}


def _zeros(tensor: TensorPlan) -> NDArray[Any]:
    sizes = [size for size in tensor.shape if isinstance(size, int)]
    return np.zeros(sizes, "float32" if tensor.dtype == "bfloat16" else tensor.dtype)
