"""The engine protocols: what a runtime must offer so that the session can use it.

A vision engine turns pixels into image embeddings; a decoder engine turns a prompt of token ids and embeddings into
logits, then one token after another. They are combined freely, since no runtime is best at both. Everything above
them (splicing, sampling, stop rules, streaming, timing) is the session's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from edgevlm.runtimes.device import AUTO, Device

Float32 = NDArray[np.float32]
Int32 = NDArray[np.int32]

Int64 = NDArray[np.int64]

#: Token ids `int32[L]`, or embeddings `float32[L, H]`; `float32[rows, columns, H]` for an image whose positions form a
#: grid (decoders with `rope_sections`).
Segment: TypeAlias = "Int32 | Float32"


KvCache: TypeAlias = Literal["auto", "f16", "q8_0", "q4_0"]


@dataclass(frozen=True)
class EngineOptions:
    """What the caller may ask of any engine.

    Attributes:
        threads: CPU threads; 0 lets the engine use all physical cores.
        context_length: positions of the key/value cache; 0 takes min(model maximum, 4096).
        low_memory: the vision engine of ONNX Runtime leaves half-precision weights as they are and widens them in each
            run, which is slower; otherwise it keeps them in float32, twice as large. Other engines decide themselves.
        kv_cache: how keys and values are stored, where the engine can choose; `auto` is its usual way.
        device: what the engine computes on; `auto` takes what the runtime is best on here.
    """

    threads: int = 0
    context_length: int = 0
    low_memory: bool = False
    kv_cache: KvCache = "auto"
    device: Device = AUTO


@dataclass(frozen=True)
class EngineStats:
    """What an engine says of itself, for reports.

    Attributes:
        name: engine and version, e.g. `onnxruntime 1.31.1`.
        details: build flags, execution provider, precision: label -> value.
        reused_tokens: prompt positions of the last prefill taken from the cache.
    """

    name: str
    details: dict[str, str] = field(default_factory=dict)
    reused_tokens: int = 0


class Encoded(NamedTuple):
    """What a vision graph makes of the tiles of one image.

    Attributes:
        rows: embeddings `[T, N, hidden]`, N of each tile; where they are shared out, in the order of `places`.
        places: of shared tokens `[T * N]`, ascending: tile times the tokens that a tile has, plus which of them; -1
            behind the last, where fewer show the image. None where each tile has N.
    """

    rows: Float32
    places: Int64 | None = None


class VisionEngine(Protocol):
    """Pixels to image embeddings."""

    def encode(self, pixels: Float32) -> Float32:
        """Pixels `[B, 3, H, W]` to embeddings `[B, N, hidden]`.

        For models with `PreprocessSpec.patches`, patches of one image `[rows, columns, M, V]` to `[1, N, hidden]`.

        Raises:
            EngineError: the runtime failed or returned another shape.
        """

    def stats(self) -> EngineStats:
        """Name, version and settings."""

    def close(self) -> None:
        """Free the runtime's memory; the engine cannot be used afterwards."""


@runtime_checkable
class GuidedEngine(VisionEngine, Protocol):
    """A vision engine for models whose image tokens are chosen by the question (`VisionSpec.text`)."""

    def encode_guided(self, pixels: Float32, text: Float32) -> Float32:
        """Pixels `[B, 3, H, W]` and a question `[1, P]` to embeddings `[B, N, hidden]`.

        Raises:
            EngineError: the runtime failed or returned another shape.
        """


class TextEngine(Protocol):
    """Text to vectors, for models whose image tokens are chosen by the question."""

    def encode(self, ids: Int32) -> Float32:
        """Ids `[L]`, those around the text included, to a vector `[P]` as long as it comes.

        Raises:
            EngineError: the runtime failed or returned another shape.
        """

    def close(self) -> None:
        """Free the runtime's memory; the engine cannot be used afterwards."""


@runtime_checkable
class TileEngine(VisionEngine, Protocol):
    """A vision engine that can take all tiles of an image at once, for graphs that share tokens out among them."""

    def encode_tiles(self, pixels: Float32, boxes: Float32) -> Encoded:
        """Pixels `[T, 3, R, R]` of one image and the places of its tiles `[T, 4]` (`tile_boxes`) to its tokens.

        Raises:
            EngineError: the runtime failed or returned another shape, or places that cannot be.
        """


class FusionEngine(Protocol):
    """Image and question mixed before the decoder sees either, for models with a `FusionSpec`."""

    def fuse(self, image: Float32, text: Float32) -> Float32:
        """Embeddings of an image `[V, hidden]` and of a prompt `[L, hidden]` to `[Q + L, hidden]`.

        Raises:
            EngineError: the runtime failed or returned another shape.
        """

    def stats(self) -> EngineStats:
        """Name, version and settings."""

    def close(self) -> None:
        """Free the runtime's memory; the engine cannot be used afterwards."""


class DecoderEngine(Protocol):
    """A causal decoder with one key/value cache.

    `position` counts the places taken in the cache, one for each token and each embedding. Prefill and decode append
    to it.
    """

    vocab_size: int
    context_length: int
    position: int

    def prefill(self, segments: list[Segment]) -> Float32:
        """Append the segments in order; return the logits `[V]` of the last position.

        Raises:
            EngineError: the runtime failed.
            InputError: the segments do not fit into the context.
        """

    def embed(self, ids: Int32) -> Float32:
        """Embeddings `[L, hidden]` of token ids `[L]`, each within the vocabulary; nothing is appended.

        Raises:
            EngineError: the runtime failed.
        """

    def decode(self, token: int) -> Float32:
        """Append one token; return the logits `[V]` after it. The array may be reused by the next call."""

    def reset(self, keep: int = 0) -> None:
        """Forget all positions from `keep` on."""

    def stats(self) -> EngineStats:
        """Name, version and settings."""

    def close(self) -> None:
        """Free the runtime's memory; the engine cannot be used afterwards."""
