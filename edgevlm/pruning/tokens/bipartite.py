"""Merging tokens in pairs: every other token looks for its likest partner among those between (arXiv 2210.09461)."""

from __future__ import annotations

import torch
from torch import Tensor

from edgevlm.pruning.tokens.selecting import ascending, one_hot, ranked, take, unit


def merge_step(x: Tensor, weights: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Make `count` tokens fewer.

    Tokens at even places each find the likest (cosine) at odd places. The `count` likest of these pairs are merged to
    weighted means. Left are, in this order, the even tokens that were not merged and all odd ones.

    Args:
        x: `[B, N, C]`.
        weights: `[B, N, 1]`, of each token in a mean.
        count: at most N / 2.

    Returns:
        Tokens `[B, N - count, C]`, and the sums of the weights in them.
    """
    even, odd = x[:, ::2], x[:, 1::2]
    weights_even, weights_odd = weights[:, ::2], weights[:, 1::2]
    cosine = unit(even) @ unit(odd).transpose(1, 2)
    order = ranked(cosine.amax(dim=-1))
    merged, left = order[:, :count], ascending(order[:, count:])
    partner = torch.gather(cosine.argmax(dim=-1), 1, merged)
    belongs = one_hot(partner, odd.shape[1]).transpose(1, 2)
    added = take(weights_even, merged)
    total = weights_odd + belongs @ added
    means = (odd * weights_odd + belongs @ (take(even, merged) * added)) / total
    return torch.cat((take(even, left), means), dim=1), torch.cat((take(weights_even, left), total), dim=1)
