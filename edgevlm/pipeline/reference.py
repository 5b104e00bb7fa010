"""The original model in float32, a layer at a time: what an exported model must answer like.

In: a `VlmModel` whose weights may be memory-mapped in bf16. Out: image features and logits. Only one decoder layer
(or a block of head rows) exists in float32 at any moment, so the reference of an 8B model needs little memory.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from edgevlm.models.decoder import rotary_tables
from edgevlm.models.vlm import VlmModel

Float32 = NDArray[np.float32]

_HEAD_ROWS = 16384


def _float(module: nn.Module) -> nn.Module:
    """A float32 copy of a module."""
    return copy.deepcopy(module).float()


@torch.inference_mode()
def image_features(model: VlmModel, images: list[Float32]) -> list[Float32]:
    """Pixels of each image's tiles `[T, 3, R, R]` to their features `[T, N, hidden]`, one tile at a time."""
    vision = _float(model.vision)
    return [torch.cat([vision(tile[None]) for tile in torch.from_numpy(tiles)]).numpy() for tiles in images]


@torch.inference_mode()
def token_embeddings(model: VlmModel, ids: list[int]) -> Float32:
    """Embeddings `[L, hidden]` of token ids."""
    return F.embedding(torch.tensor(ids), model.decoder.embed_tokens.weight).float().numpy()


@torch.inference_mode()
def last_logits(model: VlmModel, sequences: list[Float32], counts: list[int]) -> list[Float32]:
    """Logits of the last positions of each sequence.

    Args:
        model: the original.
        sequences: embeddings `[L, hidden]` of whole sequences.
        counts: for each sequence, how many of its last positions to compute logits for.

    Returns:
        float32 `[count, V]` per sequence.
    """
    decoder, spec = model.decoder, model.spec.decoder
    states: list[Tensor] = [torch.from_numpy(sequence)[None] for sequence in sequences]
    tables = [
        rotary_tables(torch.arange(x.shape[1])[None], spec.rotary_dim, spec.rope_theta, spec.rope_scaling)
        for x in states
    ]
    for stored in decoder.layers:
        layer = _float(stored)
        states = [layer(x, rotary, None, None)[0] for x, rotary in zip(states, tables, strict=True)]
    norm = _float(decoder.norm)
    tails = torch.cat([norm(x[0, -count:]) for x, count in zip(states, counts, strict=True)])
    head = decoder.embed_tokens if spec.tied_embeddings else decoder.lm_head
    blocks = [tails @ rows.float().T for rows in torch.split(head.weight, _HEAD_ROWS)]
    logits = torch.cat(blocks, dim=1)
    if not spec.tied_embeddings and spec.head_bias:
        logits = logits + decoder.lm_head.bias.float()
    return [part.numpy() for part in torch.split(logits, counts)]
