"""G-Prune (arXiv 2501.02268): the tokens that stand for many others in a graph of similar tokens."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from edgevlm.models.taps import Taps
from edgevlm.pruning.tokens.reducer import Options, Ranking
from edgevlm.pruning.tokens.selecting import products, unit


class GPruneOptions(Options):
    """Options of `gprune`; the defaults are the published values."""

    #: Two tokens are joined above this cosine.
    threshold: float = Field(default=0.5, gt=-1, lt=1)
    #: Of the softmax over a token's edges.
    temperature: float = Field(default=0.03, gt=0)
    #: How often information flows along the edges.
    steps: int = Field(default=5, ge=1)


class GPrune(Ranking[GPruneOptions]):
    """Edges where cos > threshold; W = softmax of cos / temperature over the edges of a token, itself among them.

    Information starts equal and flows `steps` times, s <- W's; the K with the highest s / degree are kept.
    """

    name = "gprune"
    summary = "highest information per edge after flowing through a graph of similar tokens"
    source = "G-Prune (arXiv 2501.02268)"
    before_projector = False
    Options = GPruneOptions

    def scores(self, x: Tensor, taps: Taps) -> Tensor:  # noqa: ARG002
        """Scores `[B, N]`."""
        cosine = products(unit(x))
        edges = cosine > self.options.threshold
        flow = torch.exp((cosine - 1) / self.options.temperature) * edges
        flow = flow / flow.sum(dim=-1, keepdim=True).clamp(min=1e-12)
        information = torch.full_like(flow[:, :1], 1 / x.shape[1])
        for _ in range(self.options.steps):
            information = information @ flow
        return information[:, 0] / edges.sum(dim=-1).clamp(min=1)
