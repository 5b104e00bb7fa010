"""CDPruner (arXiv 2506.10967): tokens that differ from each other, weighted by what the question says about them."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from edgevlm.models.taps import Taps
from edgevlm.pruning.tokens.dpp import dpp_greedy
from edgevlm.pruning.tokens.guided import question_similarity, without_text
from edgevlm.pruning.tokens.reducer import Options, Selector
from edgevlm.pruning.tokens.selecting import products, unit
from edgevlm.spec import ModelSpec

#: Keeps the token farthest from the question in the kernel.
_LEAST_RELEVANCE = 1e-6


class CdPrunerOptions(Options):
    """Options of `cdpruner`."""

    #: The question's share of the choice: the kernel's weights are exp(theta / (2 (1 - theta)) relevance), so that 0 is
    #: diversity alone; None takes the relevance itself, as published.
    theta: float | None = Field(default=None, ge=0, lt=1)


class CdPruner(Selector[CdPrunerOptions]):
    """Greedy MAP of a determinantal point process with the kernel L_ij = r_i cos_ij r_j.

    cos is that of the features; r is, over the tokens of an image, the min-max of minus the mean cosine of patch and
    question in CLIP's shared space, where patches are the less like a text the more they show of it.
    """

    name = "cdpruner"
    summary = "determinantal point process of features, weighted by the question"
    source = "CDPruner (arXiv 2506.10967)"
    needs_text = True
    Options = CdPrunerOptions

    @classmethod
    def refuses(cls, spec: ModelSpec, keep: int, options: CdPrunerOptions) -> str | None:  # noqa: ARG003
        """Models without a text tower, and more tokens than can differ."""
        if keep > spec.vision.feature_size:
            return (
                f"{keep} tokens of {spec.vision.feature_size} channels cannot be linearly independent, which it needs"
            )
        return without_text(spec, cls.name)

    def select(self, x: Tensor, taps: Taps) -> Tensor:
        """Indexes `[B, K]`."""
        away = -question_similarity(taps)
        lowest, highest = away.amin(dim=-1, keepdim=True), away.amax(dim=-1, keepdim=True)
        relevance = (away - lowest + _LEAST_RELEVANCE) / (highest - lowest).clamp(min=1e-12)
        if self.options.theta is not None:
            relevance = torch.exp(self.options.theta / (2 * (1 - self.options.theta)) * relevance)
        # Exactly 1 for a token and itself, lest rounding choose the first of equally relevant tokens.
        alike = torch.where(torch.eye(x.shape[1], device=x.device) > 0, 1.0, products(unit(x)))
        return dpp_greedy(alike * relevance[:, :, None] * relevance[:, None, :], self.keep)  # type: ignore[no-any-return]
