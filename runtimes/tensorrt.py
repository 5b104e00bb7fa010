"""TensorRT engines on NVIDIA GPUs: vision, fusion, and a decoder whose keys and values stay on the GPU.

In: a bundle with a build plan and engines that `edgevlm build` made for this machine. Out: the engine protocols of
`runtimes.base`. The decoder looks tokens up on the GPU too, appends to its keys and values in place (or, where the
graph cannot, to one of two copies that change places), and runs a decode step as one recorded CUDA graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm.bundle import Bundle
from edgevlm.errors import EdgeVLMError, EngineError, InputError, UnsupportedError
from edgevlm.runtimes.base import EngineOptions, EngineStats, Float32, Int32, Segment
from edgevlm.runtimes.build_plan import PLAN, BuildPlan, ComponentPlan, Role, Sizes, fixed_bytes, read_build_plan
from edgevlm.runtimes.checks import (
    check_fits,
    check_own_cache,
    checked_features,
    checked_fusion,
    context_length,
    engine_errors,
)
from edgevlm.runtimes.positions import RotaryPositions, flat
from edgevlm.runtimes.trt.cards import EngineCard, Place, find_engine
from edgevlm.runtimes.trt.cuda import Cuda
from edgevlm.runtimes.trt.engine import Engine, longest
from edgevlm.runtimes.trt.library import LIBRARIES, Library, installed, l4t_release, library_version

#: Inputs of the fusion, in the order of `fuse`.
_FUSED = ("image_embeds", "text_embeds")
_DECODER_ROLES: tuple[Role, Role] = ("embed", "decoder")
_NONE = "install JetPack's TensorRT on a Jetson (docs/jetson.md); on an RTX card: pip install 'edgevlm[rtx]'"


def places_here(cuda: Cuda) -> list[Place]:
    """What engines run on this machine: its GPU with each library that is installed.

    Raises:
        EngineError: no library is installed.
    """
    capability, release = cuda.gpu.compute_capability, l4t_release()
    found: list[Library] = [library for library in LIBRARIES if installed(library)]
    if not found:
        raise EngineError("no TensorRT is installed", "TensorRT", _NONE)
    return [
        Place(library, library_version(library), capability, release if library == "tensorrt" else "")
        for library in found
    ]


def has_engine(bundle: Bundle, role: Role, device: int = 0) -> bool:
    """Whether the bundle holds an engine that was built for this machine."""
    try:
        component = read_build_plan(bundle.path / PLAN).component(role)
        cuda = Cuda(device)
    except EdgeVLMError:
        return False
    try:
        return component is not None and find_engine(bundle, component, places_here(cuda)) is not None
    except EdgeVLMError:
        return False
    finally:
        cuda.close()


class _Found:
    """What a bundle has of one component for this machine: its plan, its engine's file and card."""

    def __init__(self, bundle: Bundle, plan: BuildPlan, role: Role, places: list[Place]) -> None:
        component = plan.component(role)
        if component is None:
            raise UnsupportedError(f"the build plan has no {role}", str(bundle.path / PLAN), "export the bundle again")
        self.path, self.card = find_engine(bundle, component, places)
        self.component: ComponentPlan = component

    def load(self, cuda: Cuda, largest: Mapping[str, Sizes] | None = None) -> Engine:
        """Load the engine onto the GPU; `largest` as `Engine` takes it."""
        return Engine(self.path, self.card, self.component, cuda, largest)


def _stats(card: EngineCard, cuda: Cuda, **details: str) -> EngineStats:
    shown = {"gpu": f"{cuda.gpu.name} (SM {card.compute_capability})", **details}
    return EngineStats(f"{card.library} {card.version}", {**shown, **({"l4t": card.l4t} if card.l4t else {})})


class TensorRTVision:
    """Pixels to image embeddings through the vision engine, one image after the other."""

    def __init__(self, bundle: Bundle, device: int = 0) -> None:
        """Load the engine.

        Raises:
            EngineError: there is no GPU, no library, or no engine for them.
            BundleError: the plan or the engine is damaged.
            UnsupportedError: the graph takes more than pixels.
        """
        plan = read_build_plan(bundle.path / PLAN)
        self._cuda = Cuda(device)
        opened = _Found(bundle, plan, "vision", places_here(self._cuda))
        self._engine, self._card = opened.load(self._cuda), opened.card
        if len(opened.component.inputs) != 1:
            raise UnsupportedError("the vision graph takes more than pixels", opened.component.graph)
        self._input, self._output = opened.component.inputs[0].name, opened.component.outputs[0].name
        self._profile = opened.component.profiles[0].name
        self._tokens, self._hidden = bundle.spec.vision.image_tokens, bundle.spec.decoder.hidden_size

    def encode(self, pixels: Float32) -> Float32:
        """Pixels `[B, 3, H, W]` to embeddings `[B, N, hidden]`.

        Raises:
            EngineError: the runtime failed or returned another shape.
        """
        features = []
        for image in pixels.astype(np.float32, copy=False):
            pixel_row = np.ascontiguousarray(image[None])
            if pixel_row.shape != self._engine.shape(self._profile, self._input):
                self._engine.set_shape(self._profile, self._input, pixel_row.shape)
            rows = np.empty(self._engine.shape(self._profile, self._output), np.float32)
            self._cuda.upload(self._engine.addresses[self._input], pixel_row)
            self._engine.enqueue(self._profile)
            self._cuda.download(rows, self._engine.addresses[self._output])
            self._cuda.wait()
            features.append(checked_features(rows, 1, self._tokens, self._hidden))
        return np.concatenate(features)

    def stats(self) -> EngineStats:
        """Name, version and settings."""
        return _stats(self._card, self._cuda)

    def close(self) -> None:
        """Free the engine."""
        self._engine.close()
        self._cuda.close()


class TensorRTFusion:
    """Image and text embeddings through the fusion engine."""

    def __init__(self, bundle: Bundle, device: int = 0) -> None:
        """Load the engine.

        Raises:
            EngineError: there is no GPU, no library, or no engine for them.
            BundleError: the plan or the engine is damaged.
        """
        assert bundle.spec.fusion is not None
        plan = read_build_plan(bundle.path / PLAN)
        self._cuda = Cuda(device)
        found = _Found(bundle, plan, "fusion", places_here(self._cuda))
        self._tokens, self._hidden = bundle.spec.fusion.image_tokens, bundle.spec.decoder.hidden_size
        self._profile = found.component.profiles[0].name
        self._longest = longest(found.component, self._profile, "text_embeds")
        fused = (1, self._tokens + self._longest, self._hidden)
        self._engine, self._card = found.load(self._cuda, {"fused_embeds": fused}), found.card

    def fuse(self, image: Float32, text: Float32) -> Float32:
        """Embeddings `[V, hidden]` and `[L, hidden]` to `[Q + L, hidden]`.

        Raises:
            EngineError: the runtime failed or returned another shape.
            InputError: the text is longer than the engine was built for.
        """
        if not 0 < len(text) <= self._longest:
            what = f"the prompt has {len(text)} positions, the fusion engine takes 1 to {self._longest}"
            raise InputError(what, "prompt", "shorten it, or export with a larger --context-length")
        fed = {name: np.ascontiguousarray(rows[None]) for name, rows in zip(_FUSED, (image, text), strict=True)}
        self._engine.set_shape(self._profile, "text_embeds", (1, *text.shape))
        for name, rows in fed.items():
            self._cuda.upload(self._engine.addresses[name], rows)
        fused = np.empty((1, self._tokens + len(text), self._hidden), np.float32)
        self._engine.enqueue(self._profile)
        self._cuda.download(fused, self._engine.addresses["fused_embeds"])
        self._cuda.wait()
        return checked_fusion(fused, self._tokens + len(text), self._hidden)

    def stats(self) -> EngineStats:
        """Name, version and settings."""
        return _stats(self._card, self._cuda)

    def close(self) -> None:
        """Free the engine."""
        self._engine.close()
        self._cuda.close()


class TensorRTDecoder:
    """The decoder and its embedding, as two engines in one stream."""

    def __init__(self, bundle: Bundle, options: EngineOptions, device: int = 0) -> None:
        """Load both engines, allocate the cache, and record the decode step.

        Raises:
            EngineError: there is no GPU, no library, or no engine for them; or too little GPU memory.
            BundleError: the plan or an engine is damaged.
            InputError: the context length is out of range.
        """
        check_own_cache(options, "TensorRT")
        plan = read_build_plan(bundle.path / PLAN)
        numbers = bundle.spec.decoder
        self.vocab_size, self._hidden = numbers.vocab_size, numbers.hidden_size
        self.context_length = context_length(options, plan.kv_length)
        self.position = 0
        self._cuda = Cuda(device)
        places = places_here(self._cuda)
        self._graphs: list[Any] = []
        embed, decoder = (_Found(bundle, plan, role, places) for role in _DECODER_ROLES)
        self._embed = embed.load(self._cuda)
        try:
            self._engine = decoder.load(self._cuda)
        except BaseException:
            self._embed.close()
            raise
        self._card, self._component = decoder.card, decoder.component
        self._rotary = RotaryPositions(self.context_length) if numbers.rope_sections else None
        self._longest = min(
            longest(decoder.component, "prefill", "inputs_embeds"), longest(embed.component, "prefill", "input_ids")
        )
        self._logits: Float32 = np.empty(self.vocab_size, np.float32)
        self._turn = 0
        try:
            self._copies = self._allocate_cache()
            self._bind_cache()
            self._recorded = self._record()
        except BaseException:
            self.close()
            raise

    def _allocate_cache(self) -> list[list[int]]:
        """Addresses of keys and values: one copy where the engine appends in place, else two."""
        tensors = {tensor.name: tensor for tensor in self._component.inputs}
        sizes = [fixed_bytes(tensors[entry.past]) for entry in self._component.cache]
        self.cache_bytes = sum(sizes) * (1 if self._component.in_place else 2)
        copies = 1 if self._component.in_place else 2
        return [[self._engine.allocate(size) for size in sizes] for _ in range(copies)]

    def _bind_cache(self) -> None:
        """Read the copy whose turn it is, and write the other."""
        past, present = self._copies[self._turn], self._copies[(self._turn + 1) % len(self._copies)]
        for entry, source, target in zip(self._component.cache, past, present, strict=True):
            self._engine.bind(entry.past, source)
            self._engine.bind(entry.present, target)

    def _swap(self) -> None:
        if len(self._copies) > 1:
            self._turn = 1 - self._turn
            self._bind_cache()

    def _step(self) -> None:
        """Look one token up and decode it."""
        self._embed.enqueue("decode")
        size = self._hidden * 4
        self._cuda.copy(self._engine.addresses["inputs_embeds"], self._embed.addresses["inputs_embeds"], size)
        self._engine.enqueue("decode")

    def _record(self) -> bool:
        """Record the decode step for each turn of the cache; False where the library cannot be recorded.

        A first run settles what a library decides late. What it writes lies behind position 0 and is overwritten.
        """
        if not (self._embed.capturable("decode") and self._engine.capturable("decode")):
            return False
        for _ in self._copies:
            self._step()
            self._cuda.wait()
            self._graphs.append(self._cuda.capture(self._step))
            self._swap()
        return True

    def prefill(self, segments: list[Segment]) -> Float32:
        """See `DecoderEngine.prefill`. A failure empties the cache from the prompt's start on."""
        rows = flat(segments)
        check_fits(self.position, sum(map(len, rows)), self.context_length)
        start = self.position
        places = None if self._rotary is None else self._rotary.append(start, segments)
        try:
            with engine_errors("the decoder failed on the prompt"):
                for begin, piece in _pieces(rows, self._longest):
                    length = sum(map(len, piece))
                    self._fill(piece)
                    at = None if places is None else places[:, begin : begin + length]
                    self._run_prefill(length, at)
                self._cuda.download(self._logits, self._engine.addresses["logits"])
                self._cuda.wait()
        except EdgeVLMError:
            self.reset(start)
            raise
        return self._logits.copy()

    def _fill(self, rows: list[NDArray[Any]]) -> None:
        """Put rows of embeddings `[L, H]`, or of ids `[L]`, looked up, one behind the other into the decoder."""
        address = self._engine.addresses["inputs_embeds"]
        for row in rows:
            if row.ndim == 2:
                values = np.ascontiguousarray(row, np.float32)
                self._cuda.upload(address, values)
            else:
                self._look_up(row)
                self._cuda.copy(address, self._embed.addresses["inputs_embeds"], len(row) * self._hidden * 4)
            # Uploads read the host's memory until here.
            self._cuda.wait()
            address += len(row) * self._hidden * 4

    def _look_up(self, ids: NDArray[Any]) -> None:
        if ids.size and (ids.min() < 0 or ids.max() >= self.vocab_size):
            raise InputError(
                f"a token id lies outside the vocabulary of {self.vocab_size}", "prompt", "give ids of its tokenizer"
            )
        wide = np.ascontiguousarray(ids, np.int64)
        self._embed.set_shape("prefill", "input_ids", (1, len(ids)))
        self._cuda.upload(self._embed.addresses["input_ids"], wide)
        self._embed.enqueue("prefill")
        self._cuda.wait()

    def _run_prefill(self, length: int, places: NDArray[np.int64] | None) -> None:
        begin = np.array([self.position], np.int64)
        self._engine.set_shape("prefill", "inputs_embeds", (1, length, self._hidden))
        self._cuda.upload(self._engine.addresses["write_indices"], begin)
        turned = None if places is None else np.ascontiguousarray(places[:, None], np.int64)
        if turned is not None:
            self._engine.set_shape("prefill", "position_ids", turned.shape)
            self._cuda.upload(self._engine.addresses["position_ids"], turned)
        self._engine.enqueue("prefill")
        self._cuda.wait()
        self._swap()
        self.position += length

    def embed(self, ids: Int32) -> Float32:
        """Embeddings `[L, hidden]` of token ids `[L]`.

        Raises:
            EngineError: the runtime failed.
            InputError: an id is outside the vocabulary.
        """
        found = np.empty((len(ids), self._hidden), np.float32)
        for begin in range(0, len(ids), self._longest):
            piece = ids[begin : begin + self._longest]
            self._look_up(piece)
            self._cuda.download(found[begin : begin + len(piece)], self._embed.addresses["inputs_embeds"])
            self._cuda.wait()
        return found

    def decode(self, token: int) -> Float32:
        """Append one token; return the logits `[V]` after it, in a buffer that the next call reuses.

        Raises:
            EngineError: the runtime failed.
            InputError: the context is full.
        """
        check_fits(self.position, 1, self.context_length)
        ids, begin = np.array([token], np.int64), np.array([self.position], np.int64)
        self._cuda.upload(self._embed.addresses["input_ids"], ids)
        self._cuda.upload(self._engine.addresses["write_indices"], begin)
        if self._rotary is not None:
            place = np.full((3, 1, 1), self._rotary.advance(self.position), np.int64)
            self._cuda.upload(self._engine.addresses["position_ids"], place)
        if self._recorded:
            self._cuda.launch(self._graphs[self._turn])
        else:
            self._step()
        self._cuda.download(self._logits, self._engine.addresses["logits"])
        self._cuda.wait()
        self._swap()
        self.position += 1
        return self._logits

    def reset(self, keep: int = 0) -> None:
        """Forget all positions from `keep` on: what lies behind is overwritten before it is read."""
        if not 0 <= keep <= self.position:
            raise ValueError(f"cannot keep {keep} of {self.position} positions")
        self.position = keep

    def stats(self) -> EngineStats:
        """Name, version and settings."""
        cache = f"{self.cache_bytes / 1e6:.1f} MB{'' if self._component.in_place else ', two copies'}"
        return _stats(self._card, self._cuda, cache=cache, cuda_graph="yes" if self._recorded else "no")

    def close(self) -> None:
        """Free engines, cache and graphs."""
        while self._graphs:
            self._cuda.forget(self._graphs.pop())
        self._engine.close()
        self._embed.close()
        self._cuda.close()


def _pieces(rows: list[NDArray[Any]], longest: int) -> list[tuple[int, list[NDArray[Any]]]]:
    """Rows in pieces of at most `longest` positions, each with the place that it begins at."""
    pieces: list[tuple[int, list[NDArray[Any]]]] = []
    begin, room = 0, 0
    for row in rows:
        start = 0
        while start < len(row):
            if room == 0:
                pieces.append((begin, []))
                room = longest
            part = row[start : start + room]
            pieces[-1][1].append(part)
            start, begin, room = start + len(part), begin + len(part), room - len(part)
    return pieces
