"""Sparsity meets similarity (arXiv 2409.01162), first stage at a fixed count: the tokens most like the class token."""

from __future__ import annotations

from torch import Tensor

from edgevlm.models.taps import Taps
from edgevlm.pruning.tokens.reducer import Options, Ranking
from edgevlm.pruning.tokens.selecting import unit
from edgevlm.spec import LdpSpec, ModelSpec


class ClsSimilarity(Ranking[Options]):
    """s = cosine of a token's feature and the class token's, behind the last layer; the K highest.

    Where patches are joined, the mean of their cosines.
    """

    name = "cls-similarity"
    summary = "highest cosine with the class token's feature"
    source = "SMS (arXiv 2409.01162), stage 1"
    uses_cls = True
    # An encoder shows its class token to those who look at a layer.
    layers = (-1,)

    @classmethod
    def refuses(cls, spec: ModelSpec, keep: int, options: Options) -> str | None:  # noqa: ARG003
        """A projector that needs all tokens, behind which there is no class token."""
        if isinstance(spec.vision.projector, LdpSpec):
            return "its projector joins neighbouring features, which no class token compares with"
        return None

    def scores(self, x: Tensor, taps: Taps) -> Tensor:
        """Scores `[B, N]`."""
        assert taps.class_feature is not None
        patches = x.reshape(x.shape[0], x.shape[1], self.vision.pixel_shuffle**2, -1)
        return (unit(patches) @ unit(taps.class_feature)[:, :, :, None]).mean(dim=(2, 3))
