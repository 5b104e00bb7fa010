"""Points that are far apart, one after the other, as one operator of the graph.

Each choice depends on those before it. As an operator of its own it is traced as one, and what it becomes in ONNX is
written by hand (`edgevlm.exporters.onnx.vision_ops`).
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Subtracted from the distance of a point to itself, so that a point is never its own neighbour, nor chosen again.
SELF_PENALTY = 1e9


@torch.library.custom_op("edgevlm::farthest_points", mutates_args=())
def farthest_points(distances: Tensor, keep: int) -> Tensor:
    """Greedy max-min selection.

    The first point is the one whose nearest neighbour is the farthest, each other one that whose nearest chosen point
    is. Of equals the first is taken.

    Args:
        distances: `[B, N, N]`, not negative.
        keep: how many points, at least 1 and at most N.

    Returns:
        int64 `[B, keep]`, ascending.
    """
    penalty = SELF_PENALTY * torch.eye(distances.shape[-1], device=distances.device)
    apart = distances - penalty
    chosen = (distances + penalty).amin(dim=-1).argmax(dim=-1, keepdim=True)
    found, nearest = [chosen], torch.full_like(distances[:, 0], SELF_PENALTY)
    for _ in range(keep - 1):
        row = torch.take_along_dim(apart, chosen[..., None], dim=1)[:, 0]
        nearest = torch.minimum(nearest, row)
        chosen = nearest.argmax(dim=-1, keepdim=True)
        found.append(chosen)
    return torch.cat(found, dim=1).sort(dim=1).values


@farthest_points.register_fake
def _shape(distances: Tensor, keep: int) -> Tensor:
    return distances.new_empty((distances.shape[0], keep), dtype=torch.int64)
