"""What a vision tower costs, counted by running it on the meta device: operations, and memory of its activations.

In: a `ModelSpec`. Out: numbers. No weight is read and nothing is computed, so a tower of any size takes a second.
"""

from __future__ import annotations

import math
import weakref
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from edgevlm.models.decoder import Decoder
from edgevlm.models.fusion import Fusion
from edgevlm.models.vlm import VisionModel, build_vision
from edgevlm.spec import CompressedVitSpec, ModelSpec, Qwen2VisionSpec


@dataclass(frozen=True)
class RunCost:
    """One run of a module.

    Attributes:
        flops: operations of its products and convolutions; a multiply-add counts as two.
        peak_bytes: the most that its activations take at once in float32, input included, with each freed as soon as
            nothing needs it, as runtimes plan memory.
    """

    flops: float
    peak_bytes: int


@lru_cache(maxsize=8)
def vision_module(spec: ModelSpec) -> VisionModel:
    """The vision tower and its projector on the meta device."""
    with torch.device("meta"):
        module = build_vision(spec)
    # Tables that are computed, not loaded, are made on the CPU.
    return module.to("meta")


@lru_cache(maxsize=8)
def decoder_module(spec: ModelSpec) -> Decoder:
    """The decoder on the meta device."""
    with torch.device("meta"):
        return Decoder(spec.decoder)


def fusion_module(spec: ModelSpec) -> Fusion | None:
    """The fusion on the meta device; None for models without one."""
    if spec.fusion is None:
        return None
    with torch.device("meta"):
        return Fusion(spec.fusion, spec.decoder)


@lru_cache(maxsize=64)
def vision_cost(spec: ModelSpec, height: int, width: int) -> RunCost:
    """One run of the vision tower, on a square tile, or on an image of `height` by `width` pixels that keeps its shape.

    Reducers of tokens are left out: they add about one hundredth (docs/measurements/full-size.md).
    """
    encoder = spec.vision.encoder
    with torch.device("meta"):
        if isinstance(encoder, Qwen2VisionSpec):
            patches = height // encoder.patch_size * (width // encoder.patch_size)
            inputs = [torch.zeros(patches, encoder.patch_values), torch.zeros(1, 3, dtype=torch.int64)]
        else:
            parts = encoder.parts if isinstance(encoder, CompressedVitSpec) else 1
            inputs = [torch.zeros(1, 3, parts * height, width)]
    return run_cost(vision_module(spec), inputs)


@lru_cache(maxsize=64)
def fusion_cost(spec: ModelSpec, text_tokens: int) -> RunCost:
    """One run of the fusion over an image and so many tokens of text; nothing for models without one."""
    fusion = fusion_module(spec)
    if fusion is None:
        return RunCost(0.0, 0)
    with torch.device("meta"):
        shapes = ((1, count, spec.decoder.hidden_size) for count in (spec.vision.image_tokens, text_tokens))
        return run_cost(fusion, [torch.zeros(shape) for shape in shapes])


def run_cost(module: nn.Module, inputs: list[Tensor]) -> RunCost:
    """Count one run of a module and inputs on the meta device."""
    live = _LiveBytes(sum(tensor.nbytes for tensor in inputs))
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter, live:
        module(*inputs)
    return RunCost(float(counter.get_total_flops()), live.peak)


class _LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows the bytes of all tensors that exist at once and were made inside; weights and views take none."""

    def __init__(self, start: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = start
        self._seen = weakref.WeakSet[Any]()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = {id(leaf.untyped_storage()) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and id(leaf.untyped_storage()) not in given:
                self._follow(leaf.untyped_storage(), 4 * math.prod(leaf.shape))
        return result

    def _follow(self, storage: Any, size: int) -> None:
        if storage in self._seen:
            return
        self._seen.add(storage)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, size)

    def _forget(self, size: int) -> None:
        self.live -= size
