"""The tokens that other tokens look at: for encoders that have no class token (FastViTHD, SigLIP)."""

from __future__ import annotations

from torch import Tensor

from edgevlm.models.taps import Taps
from edgevlm.pruning.tokens.attention_scores import per_token, received_attention
from edgevlm.pruning.tokens.reducer import Options, Ranking


class Attention(Ranking[Options]):
    """s = mean over heads and queries of the attention that a token receives in the last layer; the K highest."""

    name = "attention"
    summary = "highest mean attention received in the last layer"
    source = "FasterVLM's rule without a class token"
    uses_attention = True
    layers = (-1,)

    def scores(self, x: Tensor, taps: Taps) -> Tensor:  # noqa: ARG002
        """Scores `[B, N]`."""
        return per_token(received_attention(taps.found[-1], self.vision), self.vision)
