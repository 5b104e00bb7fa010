"""Choosing tokens in a graph: indexes by score, rows by index, and the same choice in torch and ONNX Runtime.

`torch.topk` leaves open which of equal scores it takes; a stable sort takes the first, as ONNX's TopK does.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: How `products` cuts many rows, and how many are many.
_BLOCKS, _BLOCKED = 3, 192


def ranked(scores: Tensor) -> Tensor:
    """Indexes `[B, N]` from the highest score to the lowest, those of equal scores in their order."""
    return torch.sort(scores, dim=-1, descending=True, stable=True).indices


def ascending(indices: Tensor) -> Tensor:
    """Indexes in their order."""
    return torch.sort(indices, dim=-1, stable=True).values


def top(scores: Tensor, keep: int) -> Tensor:
    """Indexes `[B, keep]` of the highest of the scores `[B, N]`, ascending."""
    return ascending(ranked(scores)[:, :keep])


def split(scores: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """Indexes of the highest scores and of all others, both ascending."""
    order = ranked(scores)
    return ascending(order[:, :keep]), ascending(order[:, keep:])


def take(x: Tensor, indices: Tensor) -> Tensor:
    """Rows `[B, K, C]` of `[B, N, C]`."""
    return torch.gather(x, 1, indices[..., None].expand(-1, -1, x.shape[-1]))


def one_hot(indices: Tensor, size: int) -> Tensor:
    """Indexes `[B, K]` as float32 `[B, K, size]`."""
    return (indices[..., None] == torch.arange(size, device=indices.device)).float()


def products(x: Tensor) -> Tensor:
    """Products of all pairs of rows: `[B, N, C]` to `[B, N, N]`.

    They are symmetric, so that of many rows a third of the products need not be computed: blocks below the diagonal are
    those above it, turned.
    """
    count = x.shape[1]
    if count < _BLOCKED:
        return x @ x.transpose(1, 2)
    size = -(-count // _BLOCKS)
    starts = range(0, count, size)
    right = [x[:, start : start + size] @ x[:, start:].transpose(1, 2) for start in starts]
    rows = []
    for row, start in enumerate(starts):
        left = [right[i][:, :, start - at : start - at + size].transpose(1, 2) for i, at in enumerate(starts[:row])]
        rows.append(torch.cat((*left, right[row]), dim=2))
    return torch.cat(rows, dim=1)


def unit(x: Tensor) -> Tensor:
    """Rows of length 1; a row of zeros stays."""
    length: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / length.clamp(min=1e-12)
