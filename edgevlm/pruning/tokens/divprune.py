"""DivPrune (arXiv 2503.02175): tokens that differ most from each other."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from edgevlm.models.taps import Taps
from edgevlm.pruning.tokens.farthest import farthest_points
from edgevlm.pruning.tokens.reducer import Options, Selector
from edgevlm.pruning.tokens.selecting import products, unit
from edgevlm.spec import LdpSpec, ModelSpec, VisionSpec


class DivPruneOptions(Options):
    """Options of `divprune`."""

    #: `embeddings`: what the decoder would see, as published; `features`: what enters the projector, which is narrower
    #: and spares the projector the tokens that go.
    compare: Literal["embeddings", "features"] = "embeddings"


class DivPrune(Selector[DivPruneOptions]):
    """Greedy max-min selection by the cosine distance 1 - cos."""

    name = "divprune"
    summary = "greedy max-min cosine distance"
    source = "DivPrune (arXiv 2503.02175)"
    Options = DivPruneOptions
    before_projector = False

    def __init__(self, vision: VisionSpec, keep: int, options: DivPruneOptions) -> None:
        super().__init__(vision, keep, options)
        self.before_projector = options.compare == "features"

    @classmethod
    def refuses(cls, spec: ModelSpec, keep: int, options: DivPruneOptions) -> str | None:  # noqa: ARG003
        """Features that are not tokens yet."""
        if options.compare == "features" and isinstance(spec.vision.projector, LdpSpec):
            return "its projector joins neighbouring features; leave out compare=features"
        return None

    def select(self, x: Tensor, taps: Taps) -> Tensor:  # noqa: ARG002
        """Indexes `[B, K]`."""
        distances = (1 - products(unit(x))).clamp(min=0)
        return farthest_points(distances, self.keep)  # type: ignore[no-any-return]
