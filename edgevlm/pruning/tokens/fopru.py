"""FoPru (arXiv 2411.14164): the tokens, or the rows of the image, that the encoder looks at."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from edgevlm.models.taps import Taps
from edgevlm.pruning.tokens.attention_scores import per_token, received_attention
from edgevlm.pruning.tokens.reducer import Options, Selector
from edgevlm.pruning.tokens.selecting import top
from edgevlm.spec import ModelSpec


class FoPruOptions(Options):
    """Options of `fopru`."""

    #: `rank`: the highest of all tokens; `row`: the highest whole rows.
    strategy: Literal["rank", "row"] = "rank"


class FoPru(Selector[FoPruOptions]):
    """s = mean over heads and queries of the attention that a token receives in the last layer.

    `rank` keeps the K highest; `row` the K / side rows with the highest sums, whole.
    """

    name = "fopru"
    summary = "highest attention received, token by token or row by row"
    source = "FoPru (arXiv 2411.14164)"
    uses_attention = True
    layers = (-1,)
    Options = FoPruOptions

    @classmethod
    def refuses(cls, spec: ModelSpec, keep: int, options: FoPruOptions) -> str | None:
        """A count that does not make whole rows."""
        side = math.isqrt(spec.vision.image_tokens)
        if options.strategy == "row" and keep % side:
            return f"{keep} tokens are not whole rows of {side}"
        return None

    def select(self, x: Tensor, taps: Taps) -> Tensor:
        """Indexes `[B, K]`."""
        scores = per_token(received_attention(taps.found[-1], self.vision), self.vision)
        if self.options.strategy == "rank":
            return top(scores, self.keep)
        side = math.isqrt(scores.shape[1])
        rows = top(scores.reshape(-1, side, side).sum(dim=2), self.keep // side)
        return (rows[:, :, None] * side + torch.arange(side, device=x.device)).flatten(1)
