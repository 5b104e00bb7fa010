"""The reference engines: the IR itself, run by torch in float32, on the CPU or an NVIDIA GPU.

In: a `VlmModel`. Out: the engine protocols, so that verification and the uncompressed baseline go through the same
session as every exported artefact. torch and the host half are imported only when an engine is made. A GPU is taken
where one is asked for and this torch has CUDA; products are in whole float32 there, too (TF32 stays off).
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgevlm.patches import graph_inputs
from edgevlm.runtimes.base import Encoded, EngineOptions, EngineStats, Float32, Int32, Segment
from edgevlm.runtimes.checks import (
    check_fits,
    check_own_cache,
    checked_features,
    checked_fusion,
    checked_tiles,
    context_length,
)
from edgevlm.runtimes.device import AUTO, Device
from edgevlm.runtimes.dropped import DroppedPlaces, Int64
from edgevlm.runtimes.positions import RotaryPositions, flat

if TYPE_CHECKING:
    import torch

    from edgevlm.models import VlmModel
    from edgevlm.models.decoder import KeyValue

ModuleT = TypeVar("ModuleT", bound="torch.nn.Module")


class TorchVision:
    """Pixels to image embeddings."""

    def __init__(self, model: VlmModel, device: Device = AUTO) -> None:
        self._device = torch_device(device)
        self._vision = _float32(model.vision, self._device)
        self._tokens, self._hidden = model.spec.vision.image_tokens, model.spec.decoder.hidden_size
        self._patches = model.spec.preprocess.patches
        self._tile_tokens = model.spec.vision.grid_side**2

    def encode(self, pixels: Float32) -> Float32:
        """Pixels `[B, 3, H, W]` to embeddings `[B, N, hidden]`."""
        import torch

        inputs = (pixels,) if self._patches is None else graph_inputs(pixels, self._patches)
        with torch.inference_mode():
            features = self._vision(*(self._tensor(each) for each in inputs)).cpu().numpy()
        if self._patches is not None:
            return checked_features(features, 1, pixels.shape[0] * pixels.shape[1], self._hidden)
        return checked_features(features, len(pixels), self._tokens, self._hidden)

    def encode_tiles(self, pixels: Float32, boxes: Float32) -> Encoded:
        """Pixels of all tiles of an image `[T, 3, R, R]` and their places `[T, 4]` to its tokens."""
        import torch

        with torch.inference_mode():
            rows, places = self._vision(self._tensor(pixels), self._tensor(boxes))
        found = rows.cpu().numpy(), places.cpu().numpy()
        return checked_tiles(*found, len(pixels), self._tokens, self._hidden, self._tile_tokens)

    def encode_guided(self, pixels: Float32, text: Float32) -> Float32:
        """Pixels `[B, 3, H, W]` and a question `[1, P]` to embeddings `[B, N, hidden]`."""
        import torch

        with torch.inference_mode():
            features = self._vision(self._tensor(pixels), text=self._tensor(text)).cpu().numpy()
        return checked_features(features, len(pixels), self._tokens, self._hidden)

    def stats(self) -> EngineStats:
        """Name, version and settings."""
        return _stats(self._device)

    def close(self) -> None:
        """Drop the module."""
        del self._vision

    def _tensor(self, array: NDArray[Any]) -> torch.Tensor:
        import torch

        return torch.from_numpy(array).to(self._device)


class TorchFusion:
    """Image and text embeddings through the pre-fusion layers."""

    def __init__(self, model: VlmModel, device: Device = AUTO) -> None:
        assert model.fusion is not None
        self._device = torch_device(device)
        self._fusion = _float32(model.fusion, self._device)
        self._hidden = model.spec.decoder.hidden_size

    def fuse(self, image: Float32, text: Float32) -> Float32:
        """Embeddings `[V, hidden]` and `[L, hidden]` to `[Q + L, hidden]`."""
        import torch

        with torch.inference_mode():
            given = (torch.from_numpy(each)[None].to(self._device) for each in (image, text))
            fused = self._fusion(*given).cpu().numpy()
        return checked_fusion(fused, self._fusion.image_tokens + len(text), self._hidden)

    def stats(self) -> EngineStats:
        """Name, version and settings."""
        return _stats(self._device)

    def close(self) -> None:
        """Drop the module."""
        del self._fusion


class TorchDecoder:
    """The causal decoder with a cache that grows by concatenation."""

    def __init__(self, model: VlmModel, options: EngineOptions) -> None:
        """Hold the model.

        Raises:
            InputError: the context length is out of range, or keys and values are to be narrow.
        """
        check_own_cache(options, "torch")
        self._device = torch_device(options.device)
        self._decoder = _float32(model.decoder, self._device)
        self._cache: list[KeyValue] | None = None
        self.vocab_size = model.spec.decoder.vocab_size
        self.context_length = context_length(options, model.spec.decoder.max_position_embeddings)
        self.position = 0
        self._rotary = RotaryPositions(self.context_length) if model.spec.decoder.rope_sections else None
        self._dropped = DroppedPlaces(model.spec.decoder.token_drop)

    def prefill(self, segments: list[Segment]) -> Float32:
        """Append the segments in order; return the logits `[V]` of the last position.

        Raises:
            InputError: the segments do not fit into the context, or, where tokens are dropped, are no whole images.
        """
        import torch

        rows = flat(segments)
        length = sum(map(len, rows))
        check_fits(self.position, length, self.context_length)
        if self._rotary is None:
            positions = torch.arange(self.position, self.position + length, device=self._device)[None]
        else:
            positions = torch.from_numpy(self._rotary.append(self.position, segments))[:, None].to(self._device)
        starts = self._dropped.image_starts(rows)
        with torch.inference_mode():
            return self._append(torch.cat([self._embed(segment) for segment in rows]), positions, starts)

    def embed(self, ids: Int32) -> Float32:
        """Embeddings `[L, hidden]` of token ids `[L]`."""
        rows: Float32 = self._embed(ids).detach().cpu().numpy()
        return rows

    def decode(self, token: int) -> Float32:
        """Append one token; return the logits `[V]` after it."""
        return self.prefill([np.array([token], np.int32)])

    def reset(self, keep: int = 0) -> None:
        """Forget all positions from `keep` on."""
        self._dropped.cut(keep)
        if self._cache is not None:
            taken = self._dropped.taken(keep)
            ends = [taken[self._dropped.part(layer)] for layer in range(len(self._cache))]
            cache = [(key[:, :, :end], value[:, :, :end]) for (key, value), end in zip(self._cache, ends, strict=True)]
            self._cache = cache if keep else None
        self.position = keep

    def stats(self) -> EngineStats:
        """Name, version and settings."""
        return _stats(self._device)

    def close(self) -> None:
        """Drop the module and the cache."""
        del self._decoder
        self._cache = None

    def _embed(self, segment: Segment) -> torch.Tensor:
        import torch

        if segment.ndim == 2:
            return torch.from_numpy(segment).to(self._device)
        ids = torch.from_numpy(segment.astype(np.int64)).to(self._device)
        return self._decoder.embed_tokens(ids)  # type: ignore[no-any-return]

    def _append(self, embeddings: torch.Tensor, positions: torch.Tensor, starts: Int64) -> Float32:
        logits, self._cache = self._decoder(
            embeddings[None], positions, self._cache, last_only=True, image_starts=starts.tolist()
        )
        self._dropped.add(self.position, len(embeddings), starts)
        self.position += len(embeddings)
        result: Float32 = logits[0, 0].cpu().numpy()
        return result


def torch_device(wanted: Device) -> torch.device:
    """Where torch computes: the GPU that is wanted, if this torch has CUDA and it is there; else the CPU."""
    import torch

    if wanted.kind == "cuda" and wanted.index < torch.cuda.device_count():
        return torch.device("cuda", wanted.index)
    return torch.device("cpu")


def _float32(module: ModuleT, device: torch.device) -> ModuleT:
    """`module` in float32 on `device`: itself, or a copy, since the model stays what it was published as."""
    import torch

    there = all(each.dtype == torch.float32 and each.device == device for each in module.parameters())
    return (module if there else copy.deepcopy(module).to(device, torch.float32)).eval()


def _stats(device: torch.device) -> EngineStats:
    import torch

    details = {"precision": "f32", "device": str(device), "threads": str(torch.get_num_threads())}
    if device.type == "cuda":
        details["gpu"] = torch.cuda.get_device_name(device)
    return EngineStats(f"torch {torch.__version__}", details)
