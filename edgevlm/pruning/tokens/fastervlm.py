"""FasterVLM (arXiv 2412.01818): the tokens that the class token looks at."""

from __future__ import annotations

from torch import Tensor

from edgevlm.models.taps import Taps
from edgevlm.pruning.tokens.attention_scores import class_attention, per_token
from edgevlm.pruning.tokens.reducer import Options, Ranking


class FasterVlm(Ranking[Options]):
    """s = mean over heads of the class token's attention in the last layer; the K highest."""

    name = "fastervlm"
    summary = "highest class-token attention in the last layer"
    source = "FasterVLM (arXiv 2412.01818)"
    uses_cls = uses_attention = True
    layers = (-1,)

    def scores(self, x: Tensor, taps: Taps) -> Tensor:  # noqa: ARG002
        """Scores `[B, N]`."""
        return per_token(class_attention(taps.found[-1]).mean(dim=1), self.vision)
