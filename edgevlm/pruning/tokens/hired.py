"""HiRED (arXiv 2408.10945), for models that see an image as one square."""

from __future__ import annotations

from torch import Tensor

from edgevlm.models.taps import Taps
from edgevlm.pruning.tokens.attention_scores import class_attention, per_token
from edgevlm.pruning.tokens.reducer import Options, Selector
from edgevlm.pruning.tokens.selecting import top
from edgevlm.spec import ModelSpec


class HiRed(Selector[Options]):
    """s = sum over heads of the class token's attention in the last layer; the K highest.

    The published method also shares out the tokens among tiles. Of one square it is FasterVLM's choice.
    """

    name = "hired"
    summary = "highest class-token attention, summed over heads; one square only"
    source = "HiRED (arXiv 2408.10945)"
    uses_cls = uses_attention = True
    layers = (-1,)

    @classmethod
    def refuses(cls, spec: ModelSpec, keep: int, options: Options) -> str | None:  # noqa: ARG003
        """Tiles, each of which would have a K of its own."""
        if spec.preprocess.tiles is not None:
            return "hired gives each tile another number of tokens, and the graph has one; use fastervlm"
        return None

    def select(self, x: Tensor, taps: Taps) -> Tensor:  # noqa: ARG002
        """Indexes `[B, K]`."""
        return top(per_token(class_attention(taps.found[-1]).sum(dim=1), self.vision), self.keep)
