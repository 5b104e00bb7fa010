"""Attention of an encoder's layer, computed from its queries and keys: what class token and patches look at."""

from __future__ import annotations

import torch
from torch import Tensor

from edgevlm.models.taps import QueryKey
from edgevlm.spec import VisionSpec, VitSpec


def has_class_token(vision: VisionSpec) -> bool:
    """Whether the first of the encoder's tokens is a class token."""
    return isinstance(vision.encoder, VitSpec) and vision.encoder.class_token


def attention_layers(vision: VisionSpec) -> int:
    """Attention layers whose map is that of the features."""
    encoder = vision.encoder
    if isinstance(encoder, VitSpec):
        return encoder.num_hidden_layers
    return encoder.depths[-1] if encoder.kind == "fastvithd" else 0


def class_attention(layer: QueryKey) -> Tensor:
    """What the class token of each head looks at `[B, heads, P]`: one row of the attention, less the class token."""
    query = layer.query[:, :, :1] * layer.query.shape[-1] ** -0.5
    return torch.softmax(query @ layer.key.transpose(-1, -2), dim=-1)[:, :, 0, 1:]


def received_attention(layer: QueryKey, vision: VisionSpec) -> Tensor:
    """How much is looked at each patch `[B, P]`: the mean over heads and queries."""
    query = layer.query * layer.query.shape[-1] ** -0.5
    weights = torch.softmax(query @ layer.key.transpose(-1, -2), dim=-1).mean(dim=(1, 2))
    return weights[:, 1:] if has_class_token(vision) else weights


def mean_keys(layer: QueryKey, vision: VisionSpec) -> Tensor:
    """Keys of the patches `[B, P, D]`, the mean over heads."""
    keys = layer.key.mean(dim=1)
    return keys[:, 1:] if has_class_token(vision) else keys


def per_token(values: Tensor, vision: VisionSpec) -> Tensor:
    """Values of patches `[B, P, ...]` as those of tokens `[B, N, ...]`: sums over the patches that were joined."""
    factor = vision.pixel_shuffle
    if factor == 1:
        return values
    small, rest = round(values.shape[1] ** 0.5) // factor, values.shape[2:]
    squares = values.reshape(-1, small, factor, small, factor, *rest)
    return squares.sum(dim=(2, 4)).reshape(-1, small * small, *rest)
