"""The likeliest subset of a determinantal point process, one token after the other, as one operator of the graph.

Fast greedy MAP inference (Chen et al., arXiv 1709.05135): the determinant of the chosen tokens' kernel is the product
of the squared diagonal of its Cholesky factor, so each step takes the token with the largest pivot that remains and
adds a row to the factor. What it becomes in ONNX is written by hand (`edgevlm.exporters.onnx.vision_ops`).
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Subtracted from the pivot of a chosen token, so that it is never chosen again.
CHOSEN = 1e9
#: The least pivot that is divided by: behind it lie only rounding errors of a kernel of lower rank.
LEAST = 1e-9


@torch.library.custom_op("edgevlm::dpp_greedy", mutates_args=())
def dpp_greedy(kernel: Tensor, keep: int) -> Tensor:
    """Greedy maximisation of det(L_S) over subsets S of `keep` tokens; of equals the first is taken.

    Args:
        kernel: L `[B, N, N]`, symmetric and positive semi-definite.
        keep: how many, at least 1 and at most N.

    Returns:
        int64 `[B, keep]`, ascending.
    """
    batch, size, _ = kernel.shape
    pivots = kernel.diagonal(dim1=1, dim2=2).clone()
    factor = kernel.new_zeros((batch, size, keep))
    rows, found = torch.arange(batch), []
    for step in range(keep):
        chosen = pivots.argmax(dim=-1)
        found.append(chosen)
        root = pivots[rows, chosen].clamp(min=LEAST).sqrt()
        done = (factor @ factor[rows, chosen][..., None])[..., 0]
        factor[:, :, step] = (kernel[rows, chosen] - done) / root[:, None]
        pivots = pivots - factor[:, :, step].square()
        pivots[rows, chosen] -= CHOSEN
    return torch.stack(found, dim=1).sort(dim=1).values


@dpp_greedy.register_fake
def _shape(kernel: Tensor, keep: int) -> Tensor:
    return kernel.new_empty((kernel.shape[0], keep), dtype=torch.int64)
