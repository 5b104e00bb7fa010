"""The intermediate representation: a spec and the torch modules it describes.

Weights keep the dtype they were published in and may be memory-mapped; whoever computes with them converts a layer
at a time.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional as F

from edgevlm.errors import InputError
from edgevlm.models.decoder import Decoder
from edgevlm.models.fastvithd import FastViTHD
from edgevlm.spec import ModelSpec


class Projector(nn.Module):
    """The `mlp2x_gelu` projector: features `[B, N, C]` to embeddings `[B, N, H]`."""

    def __init__(self, in_features: int, hidden_size: int, out_features: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(in_features, hidden_size)
        self.linear_2 = nn.Linear(hidden_size, out_features)

    def forward(self, features: Tensor) -> Tensor:
        """Features `[B, N, C]` to embeddings `[B, N, H]`."""
        return self.linear_2(F.gelu(self.linear_1(features)))  # type: ignore[no-any-return]


class VisionModel(nn.Module):
    """Encoder and projector: pixels `[B, 3, H, W]` to image embeddings `[B, N, H]`."""

    def __init__(self, encoder: nn.Module, projector: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = projector

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels `[B, 3, H, W]` to image embeddings `[B, N, H]`."""
        return self.projector(self.encoder(pixels))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class VlmModel:
    """A model ready for passes and exporters.

    Attributes:
        spec: its numbers.
        vision: pixels to image embeddings.
        decoder: embeddings to logits; `decoder.embed_tokens` is the embedding table.
        tokenizer_files: files to copy into a bundle, by the name they get there (`tokenizer.json`, ...).
        sources: the checkpoint files read, for the manifest's hashes.
    """

    spec: ModelSpec
    vision: VisionModel
    decoder: Decoder
    tokenizer_files: dict[str, Path]
    sources: tuple[Path, ...]


def build_vision(spec: ModelSpec, *, batchnorm: bool = False) -> VisionModel:
    """An uninitialised vision module for `spec` (put it under `torch.device("meta")` to allocate nothing)."""
    vision = spec.vision
    projector = Projector(vision.encoder.output_size, vision.projector_hidden_size, spec.decoder.hidden_size)
    return VisionModel(FastViTHD(vision.encoder, batchnorm=batchnorm), projector)


def check_resolution(spec: ModelSpec, resolution: int) -> None:
    """Refuse a resolution (pixels a side) that is not a multiple of the encoder's stride.

    Raises:
        InputError: it is not.
    """
    stride = spec.vision.encoder.stride
    if resolution <= 0 or resolution % stride:
        below, above = max(resolution // stride, 1) * stride, (resolution // stride + 1) * stride
        raise InputError(
            f"resolution {resolution} is not a multiple of {stride}", "--resolution", f"use {below} or {above}"
        )


def with_resolution(model: VlmModel, resolution: int) -> VlmModel:
    """The same weights for square images of `resolution` pixels; the number of image tokens follows.

    Raises:
        InputError: the resolution is not a multiple of the encoder's stride.
    """
    check_resolution(model.spec, resolution)
    spec, vision = model.spec, model.spec.vision
    tokens = (resolution // vision.encoder.stride) ** 2
    spec = dataclasses.replace(
        spec,
        vision=dataclasses.replace(vision, image_size=resolution, image_tokens=tokens),
        preprocess=dataclasses.replace(spec.preprocess, image_size=resolution),
    )
    return dataclasses.replace(model, spec=spec)
