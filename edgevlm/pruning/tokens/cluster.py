"""Clusters of tokens (arXiv 2504.17892): k-means with a fixed number of steps, one token a cluster."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from edgevlm.models.taps import Taps
from edgevlm.pruning.tokens.farthest import farthest_points
from edgevlm.pruning.tokens.reducer import Options, Reducer
from edgevlm.pruning.tokens.selecting import one_hot, products, take


class ClusterOptions(Options):
    """Options of `cluster`."""

    #: Steps of k-means.
    iterations: int = Field(default=5, ge=1)


class Cluster(Reducer[ClusterOptions]):
    """K means, each of the embeddings nearest to it (Euclidean), in the order of the first embedding in each.

    Where k-means++ draws its first centres at random, far apart, these are the farthest: greedy max-min distances. A
    centre that loses all its embeddings stays where it is, and comes last.
    """

    name = "cluster"
    summary = "means of k-means clusters"
    source = "cluster-level aggregation (arXiv 2504.17892)"
    Options = ClusterOptions

    def forward(self, x: Tensor, taps: Taps) -> Tensor:  # noqa: ARG002
        """Embeddings `[B, N, C]` to `[B, K, C]`."""
        squares = (x * x).sum(dim=-1)
        distances = squares[:, :, None] + squares[:, None] - 2 * products(x)
        centres = take(x, farthest_points(distances.clamp(min=0), self.keep))
        places = torch.arange(x.shape[1], device=x.device)[:, None]
        for _ in range(self.options.iterations):
            nearest = ((centres * centres).sum(dim=-1)[:, None] - 2 * x @ centres.transpose(1, 2)).argmin(dim=-1)
            belongs = one_hot(nearest, self.keep)
            count = belongs.sum(dim=1)[..., None]
            means = belongs.transpose(1, 2) @ x / count.clamp(min=1)
            centres = torch.where(count > 0, means, centres)
        first = torch.where(belongs > 0, places, x.shape[1]).amin(dim=1)
        return take(centres, torch.sort(first, dim=-1, stable=True).indices)
