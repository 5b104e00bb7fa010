"""ONNX Runtime engines: for vision, for text, for a fusion, and for the decoder.

In: the graphs of an ONNX bundle, with the input and output names of the transformers.js layout. Out: the engine
protocols of `runtimes.base`. The decoder keeps its keys and values in buffers of the whole context length, bound to
past and present at once, so that GroupQueryAttention appends in place and nothing is copied or allocated per token.
They stay in the host's memory on GPUs, too: there ONNX Runtime has this operator in half precision only, and runs it,
in float32, on the CPU. What is small (text, fusion, the lookup of tokens) always runs on the CPU.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import BundleError, EngineError
from edgevlm.heap import huge_pages, trim_heap
from edgevlm.patches import graph_inputs
from edgevlm.runtimes.base import Encoded, EngineOptions, EngineStats, Float32, Int32, Segment
from edgevlm.runtimes.build_plan import ComputeType
from edgevlm.runtimes.checks import (
    HINT,
    check_declared,
    check_fits,
    check_own_cache,
    checked_features,
    checked_fusion,
    checked_tiles,
    context_length,
    engine_errors,
    thread_count,
)
from edgevlm.runtimes.device import Device
from edgevlm.runtimes.dropped import DroppedPlaces
from edgevlm.runtimes.ort_session import CUDA, bind_input, bind_output, open_session, session_stats
from edgevlm.runtimes.positions import RotaryPositions, flat
from edgevlm.spec import ModelSpec, PatchesSpec, TextTowerSpec

_DTYPES: dict[str, np.dtype[Any]] = {"tensor(float)": np.dtype(np.float32), "tensor(float16)": np.dtype(np.float16)}
_CACHE_DTYPES = {**_DTYPES, "tensor(int8)": np.dtype(np.int8)}


class OnnxRuntimeVision:
    """Pixels to image embeddings through `vision_encoder.onnx`."""

    def __init__(
        self, path: Path, spec: ModelSpec, options: EngineOptions, *, compute: ComputeType = "float32"
    ) -> None:
        """Load the graph; `compute` is the type of the values inside.

        Raises:
            BundleError: the graph makes another number of image tokens than the spec says.
            EngineError: ONNX Runtime refuses the graph.
        """
        self._threads = thread_count(options.threads)
        # Between images the cores belong to the decoder: the pool stops spinning as soon as a run ends.
        config = {"session.force_spinning_stop": "1"}
        self._session = open_session(
            path,
            self._threads,
            config,
            options.device,
            low_memory=options.low_memory,
            auto=CUDA,
            compute=compute,
        )
        self._input = self._session.get_inputs()[0]
        self._patches = spec.preprocess.patches
        self._dtype = _DTYPES[self._input.type]
        self._tokens, self._hidden = spec.vision.image_tokens, spec.decoder.hidden_size
        self._tile_tokens = spec.vision.grid_side**2
        if self._patches is None:
            check_declared(self._session.get_outputs()[0].shape, self._tokens, self._hidden, str(path))

    def encode(self, pixels: Float32) -> Float32:
        """Pixels `[B, 3, H, W]` to embeddings `[B, N, hidden]`, one image after the other, which bounds memory.

        Raises:
            EngineError: the runtime failed or returned another shape.
        """
        if self._patches is not None:
            return self._encode_patches(pixels, self._patches)
        features = []
        with engine_errors("the vision graph failed"):
            for image in pixels.astype(self._dtype, copy=False):
                rows = self._session.run(None, {self._input.name: image[None]})[0]
                features.append(checked_features(rows, 1, self._tokens, self._hidden))
        return features[0] if len(features) == 1 else np.concatenate(features)

    def encode_tiles(self, pixels: Float32, boxes: Float32) -> Encoded:
        """Pixels of all tiles of an image `[T, 3, R, R]` and their places `[T, 4]` to its tokens.

        Raises:
            EngineError: the runtime failed, or returned another shape or places that cannot be.
        """
        with engine_errors("the vision graph failed"):
            feed = {self._input.name: pixels.astype(self._dtype, copy=False), "tile_boxes": boxes}
            rows, places = self._session.run(["image_features", "token_places"], feed)
        return checked_tiles(rows, places, len(pixels), self._tokens, self._hidden, self._tile_tokens)

    def encode_guided(self, pixels: Float32, text: Float32) -> Float32:
        """Pixels `[B, 3, H, W]` and a question `[1, P]` to embeddings `[B, N, hidden]`, one image after the other.

        Raises:
            EngineError: the runtime failed or returned another shape.
        """
        features = []
        with engine_errors("the vision graph failed"):
            for image in pixels.astype(self._dtype, copy=False):
                rows = self._session.run(None, {self._input.name: image[None], "text_embeds": text})[0]
                features.append(checked_features(rows, 1, self._tokens, self._hidden))
        return np.concatenate(features)

    def _encode_patches(self, pixels: Float32, spec: PatchesSpec) -> Float32:
        """Patches `[rows, columns, M, V]` to embeddings `[1, N, hidden]`."""
        patches, grid = graph_inputs(pixels, spec)
        with engine_errors("the vision graph failed"):
            feed = {self._input.name: patches.astype(self._dtype, copy=False), "image_grid_thw": grid}
            rows = self._session.run(None, feed)[0]
        return checked_features(rows, 1, pixels.shape[0] * pixels.shape[1], self._hidden)

    def stats(self) -> EngineStats:
        """Name, version and settings."""
        return session_stats(self._session, self._threads)

    def close(self) -> None:
        """Free the session."""
        self._session = None
        trim_heap()


class OnnxRuntimeText:
    """Texts to vectors through `text_model.onnx`."""

    def __init__(self, path: Path, spec: TextTowerSpec, options: EngineOptions) -> None:
        """Load the graph.

        Raises:
            EngineError: ONNX Runtime refuses the graph.
        """
        self._session = open_session(
            path, thread_count(options.threads), {"session.force_spinning_stop": "1"}, Device("cpu")
        )
        self._size = spec.projection_size

    def encode(self, ids: Int32) -> Float32:
        """Ids `[L]` to a vector `[P]`.

        Raises:
            EngineError: the runtime failed or returned another shape.
        """
        with engine_errors("the text graph failed"):
            rows = self._session.run(None, {"input_ids": ids.astype(np.int64)[None]})[0]
        if rows.shape != (1, self._size) or not np.isfinite(rows).all():
            raise EngineError(f"the text engine returned {rows.shape}, or values that are not finite", "text", HINT)
        return np.asarray(rows[0], np.float32)

    def close(self) -> None:
        """Free the session."""
        self._session = None
        trim_heap()


class OnnxRuntimeFusion:
    """Image and text embeddings through `fusion.onnx`."""

    def __init__(
        self, path: Path, spec: ModelSpec, options: EngineOptions, *, compute: ComputeType = "float32"
    ) -> None:
        """Load the graph; `compute` is the type of the values inside.

        Raises:
            EngineError: ONNX Runtime refuses the graph.
        """
        assert spec.fusion is not None
        self._threads = thread_count(options.threads)
        config = {"session.force_spinning_stop": "1"}
        self._session = open_session(path, self._threads, config, Device("cpu"), compute=compute)
        self._tokens, self._hidden = spec.fusion.image_tokens, spec.decoder.hidden_size

    def fuse(self, image: Float32, text: Float32) -> Float32:
        """Embeddings `[V, hidden]` and `[L, hidden]` to `[Q + L, hidden]`.

        Raises:
            EngineError: the runtime failed or returned another shape.
        """
        with engine_errors("the fusion graph failed"):
            fused = self._session.run(None, {"image_embeds": image[None], "text_embeds": text[None]})[0]
        return checked_fusion(fused, self._tokens + len(text), self._hidden)

    def stats(self) -> EngineStats:
        """Name, version and settings."""
        return session_stats(self._session, self._threads)

    def close(self) -> None:
        """Free the session."""
        self._session = None
        trim_heap()


class OnnxRuntimeDecoder:
    """The decoder through `embed_tokens.onnx` and `decoder_model_merged.onnx`.

    Where it drops image tokens, `kept` holds, of the last prefill, the places that went on behind each stage, among
    those that entered it.
    """

    def __init__(self, decoder: Path, embed: Path, spec: ModelSpec, options: EngineOptions) -> None:
        """Load both graphs and allocate the key/value buffers.

        Raises:
            BundleError: the graph's inputs are not those of this model.
            InputError: the context length is out of range.
            EngineError: ONNX Runtime refuses a graph.
        """
        check_own_cache(options, "ONNX Runtime")
        numbers = spec.decoder
        self.vocab_size = numbers.vocab_size
        self.context_length = context_length(options, numbers.max_position_embeddings)
        self.position = 0
        self._threads = thread_count(options.threads)
        with huge_pages():
            self._session = open_session(decoder, self._threads, {}, options.device)
        self._embed = open_session(embed, 1, {}, Device("cpu"))
        self._inputs = {item.name: item for item in self._session.get_inputs()}
        self._check_inputs(decoder, spec)

        cache_shape = (1, numbers.num_key_value_heads, self.context_length, numbers.head_dim)
        cache_dtype = _CACHE_DTYPES[self._inputs["past_key_values.0.key"].type]
        self._cache = {
            f"{layer}.{part}": np.zeros(cache_shape, cache_dtype)
            for layer in range(numbers.num_hidden_layers)
            for part in ("key", "value")
        }
        self._dropped = DroppedPlaces(numbers.token_drop)
        self._kept_names = [f"kept_positions.{part + 1}" for part in range(len(self._dropped.taken(0)) - 1)]
        self.kept: list[NDArray[np.int64]] = []
        self._no_images = np.empty(0, np.int64)
        self._mask = np.ones((1, self.context_length), np.int64)
        self._one = np.ones((), np.int64)
        self._rotary = RotaryPositions(self.context_length) if numbers.rope_sections else None
        self._token_position = np.zeros((3, 1, 1), np.int64)
        self._logits: Float32 = np.empty((1, 1, self.vocab_size), np.float32)

        self._token = np.zeros((1, 1), np.int64)
        self._embedding = np.empty((1, 1, numbers.hidden_size), _DTYPES[self._inputs["inputs_embeds"].type])
        self._look_up = self._embed.io_binding()
        bind_input(self._look_up, "input_ids", self._token)
        bind_output(self._look_up, self._embed.get_outputs()[0].name, self._embedding)
        self._step = self._bind(self._embedding)
        if self._rotary is not None:
            bind_input(self._step, "position_ids", self._token_position)

    def _check_inputs(self, path: Path, spec: ModelSpec) -> None:
        numbers = spec.decoder
        last = f"past_key_values.{numbers.num_hidden_layers - 1}.value"
        needed = ["inputs_embeds", "attention_mask", "num_logits_to_keep", last]
        needed += ["position_ids"] if numbers.rope_sections else []
        needed += ["image_starts", f"attention_mask.{len(numbers.token_drop.stages)}"] if numbers.token_drop else []
        missing = [name for name in needed if name not in self._inputs]
        if missing:
            raise BundleError(f"the decoder graph has no input {missing[0]}", str(path), HINT)
        shape = self._inputs["past_key_values.0.key"].shape
        if shape[1] != numbers.num_key_value_heads or shape[3] != numbers.head_dim:
            raise BundleError(f"the decoder graph has a cache of shape {shape}", str(path), HINT)
        if self._inputs["inputs_embeds"].type != self._embed.get_outputs()[0].type:
            raise BundleError("embed_tokens and the decoder differ in element type", str(path), HINT)

    def _bind(self, embeddings: NDArray[Any]) -> Any:
        """A binding of everything that stays where it is while tokens `[1, S, H]` are appended."""
        binding = self._session.io_binding()
        bind_input(binding, "inputs_embeds", embeddings)
        for name, buffer in self._cache.items():
            bind_input(binding, f"past_key_values.{name}", buffer)
            bind_output(binding, f"present.{name}", buffer)
        bind_input(binding, "num_logits_to_keep", self._one)
        bind_output(binding, "logits", self._logits)
        return binding

    def _append(self, binding: Any, length: int, images: NDArray[np.int64], what: str) -> None:
        """Run with `length` more positions than are in the cache, among which images begin at `images`."""
        total = self.position + length
        parts = self._dropped.taken(total, len(images))
        for part, taken in enumerate(parts):
            bind_input(binding, f"attention_mask.{part}" if part else "attention_mask", self._mask[:, :taken])
        if len(parts) > 1:
            bind_input(binding, "image_starts", images)
        with engine_errors(what):
            self._session.run_with_iobinding(binding)
        self._dropped.add(self.position, length, images)
        self.position = total

    def prefill(self, segments: list[Segment]) -> Float32:
        """Append the segments in one run; return the logits `[V]` of the last position.

        Raises:
            EngineError: the runtime failed.
            InputError: the segments do not fit into the context, or, where tokens are dropped, are no whole images.
        """
        rows = flat(segments)
        length = sum(map(len, rows))
        check_fits(self.position, length, self.context_length)
        embeddings = np.empty((1, length, self._embedding.shape[2]), self._embedding.dtype)
        start = 0
        for segment in rows:
            stop = start + len(segment)
            embeddings[0, start:stop] = segment if segment.ndim == 2 else self._look_rows_up(segment)
            start = stop
        binding = self._bind(embeddings)
        if self._rotary is not None:
            positions = np.ascontiguousarray(self._rotary.append(self.position, segments)[:, None])
            bind_input(binding, "position_ids", positions)
        for name in self._kept_names:
            binding.bind_output(name, "cpu")
        self._append(binding, length, self._dropped.image_starts(rows), "the decoder failed on the prompt")
        if self._kept_names:
            self.kept = [value.numpy() for value in binding.get_outputs()[-len(self._kept_names) :]]
        return self._last_logits().copy()

    def _last_logits(self) -> Float32:
        return self._logits.reshape(-1)

    def embed(self, ids: Int32) -> Float32:
        """Embeddings `[L, hidden]` of token ids `[L]`.

        Raises:
            EngineError: the runtime failed.
        """
        return self._look_rows_up(ids).astype(np.float32, copy=False)

    def _look_rows_up(self, ids: NDArray[Any]) -> NDArray[Any]:
        with engine_errors("the embedding graph failed"):
            rows = self._embed.run(None, {"input_ids": ids.astype(np.int64)[None]})[0]
        return np.asarray(rows[0])

    def decode(self, token: int) -> Float32:
        """Append one token; return the logits `[V]` after it, in a buffer that the next call reuses.

        Raises:
            EngineError: the runtime failed.
            InputError: the context is full.
        """
        check_fits(self.position, 1, self.context_length)
        self._token[0, 0] = token
        with engine_errors("the embedding graph failed"):
            self._embed.run_with_iobinding(self._look_up)
        if self._rotary is not None:
            self._token_position.fill(self._rotary.advance(self.position))
        self._append(self._step, 1, self._no_images, "the decoder failed on a token")
        return self._last_logits()

    @property
    def cache_bytes(self) -> int:
        """Keys and values of the whole context."""
        return sum(buffer.nbytes for buffer in self._cache.values())

    def reset(self, keep: int = 0) -> None:
        """Forget all positions from `keep` on: what lies behind is overwritten before it is read."""
        if not 0 <= keep <= self.position:
            raise ValueError(f"cannot keep {keep} of {self.position} positions")
        self._dropped.cut(keep)
        self.position = keep

    def stats(self) -> EngineStats:
        """Name, version and settings."""
        return session_stats(self._session, self._threads)

    def close(self) -> None:
        """Free the sessions and the cache."""
        self._step = self._look_up = self._session = self._embed = None
        self._cache = {}
        trim_heap()
