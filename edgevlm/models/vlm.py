"""The intermediate representation: a spec and the torch modules it describes.

Weights keep the dtype they were published in and may be memory-mapped; whoever computes with them converts a layer
at a time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from edgevlm.errors import InputError
from edgevlm.models.decoder import Decoder
from edgevlm.models.fastvithd import FastViTHD
from edgevlm.models.fusion import Fusion
from edgevlm.models.llava_mini_vision import CompressedVit
from edgevlm.models.projector import build_projector, pixel_shuffle
from edgevlm.models.qwen2_vision import Qwen2Vision
from edgevlm.models.taps import Taps, TokenReducer
from edgevlm.models.tensors import assign
from edgevlm.models.text_side import TextSide
from edgevlm.models.text_tower import PatchHead
from edgevlm.models.vit import Vit, resize_positions
from edgevlm.quant.cache_scales import CacheScales
from edgevlm.quant.tensor import QuantizedTensor, QuantScheme
from edgevlm.spec import CompressedVitSpec, EncoderSpec, FastViTHDSpec, ModelSpec, Qwen2VisionSpec, VitSpec


class VisionModel(nn.Module):
    """Encoder and projector, and a reducer of tokens before or behind the projector where a pass put one.

    For a reducer that reads the question, `patches` takes features into the space that they share with text.
    """

    def __init__(
        self,
        encoder: nn.Module,
        projector: nn.Module,
        shuffle: int = 1,
        reducer: TokenReducer | None = None,
        patches: PatchHead | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = projector
        self.shuffle = shuffle
        self.reducer = reducer
        self.patches = patches

    def forward(self, pixels: Tensor, grid: Tensor | None = None, text: Tensor | None = None) -> Tensor:
        """Pixels `[B, 3, H, W]`, or patches `[P, V]` and their grid, to image embeddings `[B, N, H]`.

        `text` `[1, P]` is the question, as `edgevlm.question` makes it.
        """
        reducer = self.reducer
        taps = Taps(()) if reducer is None else Taps(reducer.layers)
        if taps.layers:
            features = self.encoder(pixels, taps)
        else:
            features = self.encoder(pixels) if grid is None else self.encoder(pixels, grid)
        if self.patches is not None:
            taps.text, taps.patches = text, self.patches(features)
        if self.shuffle > 1:
            features = pixel_shuffle(features, self.shuffle)
        if reducer is None:
            return self.projector(features)  # type: ignore[no-any-return]
        if reducer.before_projector:
            return self.projector(reducer(features, taps))  # type: ignore[no-any-return]
        return reducer(self.projector(features), taps)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class VlmModel:
    """A model ready for passes and exporters.

    Attributes:
        spec: its numbers.
        vision: pixels to image embeddings.
        decoder: embeddings to logits; `decoder.embed_tokens` is the embedding table.
        tokenizer_files: files to copy into a bundle, by the name they get there (`tokenizer.json`, ...).
        sources: the checkpoint files read, for the manifest's hashes.
        image_newline: `[H]`, the embedding that ends a row of image features, for models that have one.
        text_side: of the CLIP that the encoder comes from, where the checkpoint holds it.
        provenance: for each tensor (`vision.*`, `decoder.*`), which of several sources it came from; empty for one.
        quantized: how matrices of the decoder are stored, by their parameter's name: codes that an algorithm chose, or
            the scheme by which they are rounded; the recipe's precision says it of others. `decoder` keeps the numbers
            before rounding.
        cache_scales: of each layer, where keys and values are cached as int8; empty where they are cached as they are.
    """

    spec: ModelSpec
    vision: VisionModel
    decoder: Decoder
    tokenizer_files: dict[str, Path]
    sources: tuple[Path, ...]
    image_newline: Tensor | None = None
    fusion: Fusion | None = None
    text_side: TextSide | None = None
    provenance: Mapping[str, str] = field(default_factory=dict)
    quantized: Mapping[str, QuantizedTensor | QuantScheme] = field(default_factory=dict)
    cache_scales: tuple[CacheScales, ...] = ()


def build_vision(spec: ModelSpec, *, batchnorm: bool = False) -> VisionModel:
    """An uninitialised vision module for `spec` (put it under `torch.device("meta")` to allocate nothing)."""
    vision = spec.vision
    projector = build_projector(vision, spec.decoder.hidden_size)
    return VisionModel(build_encoder(vision.encoder, batchnorm=batchnorm), projector, vision.pixel_shuffle)


def build_encoder(spec: EncoderSpec, *, batchnorm: bool = False) -> nn.Module:
    """An uninitialised encoder; `batchnorm` leaves unfolded what `fold_batchnorm` folds."""
    if isinstance(spec, FastViTHDSpec):
        return FastViTHD(spec, batchnorm=batchnorm)
    if isinstance(spec, Qwen2VisionSpec):
        return Qwen2Vision(spec)
    if isinstance(spec, CompressedVitSpec):
        return CompressedVit(spec)
    return Vit(spec)


def check_resolution(spec: ModelSpec, resolution: int) -> None:
    """Refuse a resolution (pixels a side) that is not a multiple of the encoder's stride, and any for a tiled model.

    Raises:
        InputError: it is not, or the model cuts images into tiles.
    """
    if spec.preprocess.tiles is not None:
        raise InputError(
            f"{spec.name} cuts images into tiles of {spec.vision.image_size} pixels, its only size",
            "--resolution",
            "leave it out, or choose a model that sees an image as one square",
        )
    stride = spec.vision.stride
    if resolution <= 0 or resolution % stride:
        below, above = max(resolution // stride, 1) * stride, (resolution // stride + 1) * stride
        raise InputError(
            f"resolution {resolution} is not a multiple of {stride}", "--resolution", f"use {below} or {above}"
        )


def with_resolution(model: VlmModel, resolution: int) -> VlmModel:
    """The same weights for square images of `resolution` pixels; the number of image tokens follows.

    A learned table of positions is interpolated. Images that keep their shape get at most as many pixels as the square.

    Raises:
        InputError: the resolution is not a multiple of the encoder's stride, or images are cut into tiles.
    """
    check_resolution(model.spec, resolution)
    spec, vision = model.spec, model.spec.vision
    encoder = vision.encoder
    if isinstance(encoder, VitSpec):
        encoder = dataclasses.replace(encoder, grid=resolution // encoder.patch_size)
    elif isinstance(encoder, CompressedVitSpec):
        vit = dataclasses.replace(encoder.vit, grid=resolution // encoder.vit.patch_size)
        encoder = dataclasses.replace(encoder, vit=vit)
    preprocess = dataclasses.replace(spec.preprocess, image_size=resolution)
    if preprocess.patches is not None:
        patches = dataclasses.replace(
            preprocess.patches, min_pixels=min(preprocess.patches.min_pixels, resolution**2), max_pixels=resolution**2
        )
        preprocess = dataclasses.replace(preprocess, patches=patches)
    spec = dataclasses.replace(
        spec,
        vision=dataclasses.replace(
            vision, encoder=encoder, image_size=resolution, image_tokens=vision.tokens_at(resolution)
        ),
        preprocess=preprocess,
    )
    module = model.vision
    if isinstance(encoder, VitSpec | CompressedVitSpec):
        vit, table = (encoder, "encoder") if isinstance(encoder, VitSpec) else (encoder.vit, "encoder.vit")
        state = module.state_dict()
        state[f"{table}.positions"] = resize_positions(state[f"{table}.positions"], vit.grid, vit.class_token)
        with torch.device("meta"):
            module = build_vision(spec)
        assign(module, state, "")
    return dataclasses.replace(model, spec=spec, vision=module)
