"""The decoder engine on llama.cpp, over its C interface.

In: a GGUF, the decoder's spec, prompts as token ids and embeddings. Out: logits. A prompt runs as one batch per
`n_batch` positions: as tokens if it is text alone, else as embeddings (`llama_embedding`). Positions are contiguous
from 0, or those of M-RoPE. llama.cpp aborts the process on some inputs, so sizes are checked here first.
"""

from __future__ import annotations

import collections
import ctypes
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import EngineError, InputError
from edgevlm.heap import huge_pages
from edgevlm.runtimes.base import EngineOptions, EngineStats, Float32, Int32, KvCache, Segment
from edgevlm.runtimes.checks import check_fits, context_length, thread_count
from edgevlm.runtimes.device import Device
from edgevlm.runtimes.llama_embedding import TokenEmbedding
from edgevlm.runtimes.positions import RotaryPositions, flat
from edgevlm.spec import DecoderSpec

_MAX_BATCH = 512
_WARNING = 3
_CONTINUATION = 5

#: Types of the cache: their `ggml_type`, and bits that a number takes. Quantized ones have blocks of 32 channels.
_CACHE_TYPES: dict[KvCache, tuple[str, float]] = {
    "f16": ("GGML_TYPE_F16", 16),
    "q8_0": ("GGML_TYPE_Q8_0", 8.5),
    "q4_0": ("GGML_TYPE_Q4_0", 4.5),
}
_CACHE_BLOCK = 32

_last_errors: collections.deque[str] = collections.deque(maxlen=5)
_log_callback: Any = None


def load_library() -> Any:
    """The `llama_cpp` module, its log silenced; the last warnings and errors are kept for messages.

    Raises:
        EngineError: it is not installed, or its shared library does not load here.
    """
    global _log_callback
    try:
        import llama_cpp
    except (ImportError, OSError, RuntimeError) as error:
        raise EngineError(
            f"llama.cpp cannot be loaded: {error}", "llama-cpp-python", "run: python tools/llama_wheel.py"
        ) from error
    if _log_callback is None:

        def keep(level: int, text: bytes, _user: int | None) -> None:
            if level >= _WARNING and level != _CONTINUATION and text.strip():
                _last_errors.append(text.decode("utf-8", "replace").strip())

        _log_callback = llama_cpp.llama_log_callback(keep)
        llama_cpp.llama_log_set(_log_callback, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
    return llama_cpp


def _explained(what: str, where: str) -> EngineError:
    reason = f": {_last_errors[-1]}" if _last_errors else ""
    return EngineError(f"{what}{reason}", where, "run `edgevlm doctor`")


class LlamaCppDecoder:
    """A `DecoderEngine` (see `runtimes.base`) for one GGUF.

    Args:
        path: the GGUF.
        spec: what the bundle says of the decoder; the file must agree.
        options: threads, context length, device, and the type of the cache, which is f16 by default.

    Raises:
        EngineError: llama.cpp cannot load the file, or its sizes differ from the spec.
        InputError: the context asked for is longer than the model's, its heads do not fit the cache, or this build has
            no such device.
    """

    def __init__(self, path: Path, spec: DecoderSpec, options: EngineOptions | None = None) -> None:
        options = options or EngineOptions()
        self.vocab_size = spec.vocab_size
        self.context_length = context_length(options, spec.max_position_embeddings)
        self.position = 0
        self._path, self._hidden_size = str(path), spec.hidden_size
        self._threads = thread_count(options.threads)
        self._cache: KvCache = "f16" if options.kv_cache == "auto" else options.kv_cache
        if self._cache != "f16" and spec.head_dim % _CACHE_BLOCK:
            raise InputError(
                f"{self._cache} packs {_CACHE_BLOCK} channels of a head, and the heads have {spec.head_dim}",
                "kv_cache",
                "use f16",
            )
        self._cached_numbers = 2 * spec.num_hidden_layers * spec.num_key_value_heads * spec.head_dim
        self._reused = 0
        self._rotary = RotaryPositions(self.context_length) if spec.rope_sections else None
        self._model = self._context = None
        self._library = library = load_library()
        self._device, self._gpu_layers = options.device, gpu_layers(library, options.device)
        _last_errors.clear()
        self._embedding = TokenEmbedding(path, spec.vocab_size, spec.hidden_size)
        try:
            self._load_model()
            self._make_context()
        # Raised again, whatever it is, Ctrl-C too: what C allocated must be freed by hand.
        except BaseException:
            self.close()
            raise
        self._batch_size: int = library.llama_n_batch(self._context)
        self._memory = library.llama_get_memory(self._context)
        self._llama_decode = library.llama_decode
        self._token, self._token_position = (ctypes.c_int32 * 1)(), (ctypes.c_int32 * 1)()
        self._step = library.llama_batch(n_tokens=1, token=self._token)
        if self._rotary is not None:
            self._step.pos = self._token_position
        self._logits_address = 0
        self._logits: Float32 = np.empty(0, np.float32)

    def _load_model(self) -> None:
        library = self._library
        parameters = library.llama_model_default_params()
        # Most weights are copied into another layout on loading; a mapped file would stay resident beside the copy.
        parameters.load_mode = library.LLAMA_LOAD_MODE_NONE
        parameters.n_gpu_layers, parameters.main_gpu = self._gpu_layers, self._device.index
        with huge_pages():
            self._model = library.llama_model_load_from_file(self._path.encode(), parameters)
        if not self._model:
            raise _explained("llama.cpp cannot load the model", self._path)
        rows = library.llama_vocab_n_tokens(library.llama_model_get_vocab(self._model))
        width = library.llama_model_n_embd_inp(self._model)
        if (rows, width) != (self.vocab_size, self._hidden_size):
            raise EngineError(
                f"the model has {rows} tokens and width {width}, the spec {self.vocab_size} and {self._hidden_size}",
                self._path,
                "export the bundle again",
            )

    def _make_context(self) -> None:
        library = self._library
        settings = library.llama_context_default_params()
        settings.n_ctx = self.context_length
        settings.n_batch = settings.n_ubatch = min(_MAX_BATCH, self.context_length)
        settings.n_threads = settings.n_threads_batch = self._threads
        settings.n_outputs_max = 1  # else a buffer for n_batch x vocabulary logits: 300 MB at 152k tokens
        settings.no_perf = True
        settings.type_k = settings.type_v = getattr(library, _CACHE_TYPES[self._cache][0])
        if self._cache != "f16":
            # Quantized values are read by flash attention alone.
            settings.flash_attn_type = library.LLAMA_FLASH_ATTN_TYPE_ENABLED
        self._context = library.llama_init_from_model(self._model, settings)
        if not self._context:
            raise _explained("llama.cpp cannot make a context", self._path)

    def prefill(self, segments: list[Segment]) -> Float32:
        """See `DecoderEngine.prefill`. A failure empties the cache from the prompt's start on."""
        rows = flat(segments)
        self._check(rows)
        start = self._reused = self.position
        inputs = self._merge(rows)
        positions = None if self._rotary is None else self._rotary.append(start, segments).astype(np.int32)
        try:
            for begin in range(0, len(inputs), self._batch_size):
                piece = inputs[begin : begin + self._batch_size]
                at = None if positions is None else positions[:, begin : begin + len(piece)]
                self._run(piece, at, last=begin + len(piece) == len(inputs))
        except EngineError:
            self.reset(start)
            raise
        return self._read_logits().copy()

    def embed(self, ids: Int32) -> Float32:
        """See `DecoderEngine.embed`. The rows are the file's own, dequantized."""
        self._check_ids(ids)
        return self._embedding.rows(ids)

    def decode(self, token: int) -> Float32:
        """See `DecoderEngine.decode`. The array is llama.cpp's own and holds until the next call."""
        if self.position >= self.context_length:
            check_fits(self.position, 1, self.context_length)
        self._token[0] = token
        if self._rotary is not None:
            self._token_position[0] = self._rotary.advance(self.position)
        status = self._llama_decode(self._context, self._step)
        if status != 0:
            raise _explained(f"llama_decode returned {status} for token {token}", self._path)
        self.position += 1
        return self._read_logits()

    def reset(self, keep: int = 0) -> None:
        """See `DecoderEngine.reset`."""
        keep = min(max(keep, 0), self.position)
        first = keep if self._rotary is None else self._rotary.at(keep)
        if not self._library.llama_memory_seq_rm(self._memory, 0, first, -1):
            self._library.llama_memory_clear(self._memory, False)
            keep = 0
        self.position = keep

    def stats(self) -> EngineStats:
        """See `DecoderEngine.stats`."""
        library = self._library
        description = ctypes.create_string_buffer(128)
        library.llama_model_desc(self._model, description, len(description))
        details = {
            "model": description.value.decode("utf-8", "replace"),
            "threads": str(self._threads),
            "gpu_layers": "all" if self._gpu_layers else "none",
            "n_batch": str(self._batch_size),
            "cache": f"{self._cache}, {self.cache_bytes / 1e6:.1f} MB",
            "system": build_flags(library),
        }
        return EngineStats(f"llama.cpp (llama-cpp-python {library.__version__})", details, self._reused)

    @property
    def cache_bytes(self) -> int:
        """Keys and values of the whole context; llama.cpp rounds its length up."""
        return int(self._library.llama_n_ctx(self._context) * self._cached_numbers * _CACHE_TYPES[self._cache][1] / 8)

    def close(self) -> None:
        """See `DecoderEngine.close`."""
        if self._context:
            self._library.llama_free(self._context)
            self._context = None
        if self._model:
            self._library.llama_model_free(self._model)
            self._model = None
            self._embedding.close()

    def _check(self, segments: list[Segment]) -> None:
        check_fits(self.position, sum(len(segment) for segment in segments), self.context_length)
        for segment in segments:
            if segment.ndim == 1:
                self._check_ids(segment)
            elif segment.shape[1:] != (self._hidden_size,):
                raise EngineError(f"embeddings have shape {segment.shape}, not [L, {self._hidden_size}]", self._path)

    def _check_ids(self, ids: NDArray[Any]) -> None:
        if ids.size and (ids.min() < 0 or ids.max() >= self.vocab_size):
            raise InputError(
                f"a token id lies outside the vocabulary of {self.vocab_size}", self._path, "give ids of its tokenizer"
            )

    def _merge(self, segments: list[Segment]) -> NDArray[Any]:
        """The whole prompt as ids `int32[L]` if it is text alone, else as embeddings `float32[L, H]`."""
        if all(segment.ndim == 1 for segment in segments):
            return np.concatenate(segments).astype(np.int32, copy=False)
        rows = [s if s.ndim == 2 else self._embedding.rows(s.astype(np.int32, copy=False)) for s in segments]
        return np.ascontiguousarray(np.concatenate(rows), np.float32)

    def _run(self, piece: NDArray[Any], positions: NDArray[np.int32] | None, *, last: bool) -> None:
        """One `llama_decode` of at most n_batch positions; logits for the last of them only where `last`.

        llama.cpp reads one rotary position for a token, and four rows of them for embeddings: three axes and a spare.
        """
        library = self._library
        batch = library.llama_batch(n_tokens=len(piece))
        if piece.ndim == 1:
            batch.token = piece.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        else:
            batch.embd = piece.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        if positions is not None:
            axes = np.concatenate((positions, np.zeros((1, len(piece)), np.int32)))
            batch.pos = axes.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        outputs = np.zeros(len(piece), np.int8)
        outputs[-1] = last
        batch.logits = outputs.ctypes.data_as(ctypes.POINTER(ctypes.c_int8))
        status = self._llama_decode(self._context, batch)
        if status != 0:
            raise _explained(f"llama_decode returned {status} at position {self.position}", self._path)
        self.position += len(piece)

    def _read_logits(self) -> Float32:
        pointer = self._library.llama_get_logits(self._context)
        address = ctypes.cast(pointer, ctypes.c_void_p).value
        if not address:
            raise _explained("llama.cpp returned no logits", self._path)
        if address != self._logits_address:
            self._logits_address = address
            self._logits = np.ctypeslib.as_array(pointer, (self.vocab_size,))
        return self._logits


def gpu_layers(library: Any, device: Device) -> int:
    """How many layers go to the GPU: all (-1) where this build has one, unless the CPU was asked for.

    Raises:
        InputError: a GPU was asked for, and this build has none.
    """
    offloads = bool(library.llama_supports_gpu_offload())
    if device.kind == "tensorrt" or (device.kind == "cuda" and not offloads):
        raise device.refused(
            f"this build of llama.cpp computes on {build_flags(library).partition(':')[0] or 'the CPU'} alone",
            "build it with CUDA (docs/run.md), or take --device cpu",
        )
    return -1 if offloads and device.kind != "cpu" else 0


def build_flags(library: Any) -> str:
    """What this build was compiled for and uses here, e.g. `CPU: AVX2 AVX512 REPACK`."""
    text = str(library.llama_print_system_info().decode())
    return " ".join(text.replace(" = 1", "").replace(" |", "").replace(" :", ":").split())
