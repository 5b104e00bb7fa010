"""DART (arXiv 2502.11494): behind an early layer the image tokens that are no duplicates of a few pivots."""

from __future__ import annotations

from pydantic import Field

from edgevlm.pruning.tokens.inside_decoder import DecoderMethod, layer_refusal
from edgevlm.pruning.tokens.reducer import Options
from edgevlm.spec import DropStage, ModelSpec, TokenDropSpec


class DartOptions(Options):
    """Options of DART.

    Attributes:
        after: layers that all tokens go through.
        image_pivots: pivots among the image's tokens, at most K / 2.
        text_pivots: pivots in the text behind it.
    """

    after: int = Field(default=2, ge=1)
    image_pivots: int = Field(default=10, ge=1)
    text_pivots: int = Field(default=5, ge=1)


class Dart(DecoderMethod[DartOptions]):
    """Pivots have the keys of largest L1 norm; each adds the tokens least similar to it (`edgevlm.models.token_drop`).

    Ten pivots of the image and five of the text, as UniPruneBench sets them; fewer of the image where K is small.
    """

    name = "dart"
    summary = "pivots by the norm of their keys, and what is least like them, behind a decoder layer"
    source = "DART (arXiv 2502.11494)"
    Options = DartOptions

    @classmethod
    def refuses(cls, spec: ModelSpec, keep: int, options: DartOptions) -> str | None:
        """Why the method itself cannot be used on this model, or None."""
        tokens = spec.vision.image_tokens
        if keep < 2:
            return "dart keeps 2 tokens or more, a pivot and one unlike it"
        if options.text_pivots > tokens:
            return f"an image of {tokens} tokens cannot be compared with {options.text_pivots} pivots of the text"
        return layer_refusal(spec, options.after)

    @classmethod
    def drop(cls, spec: ModelSpec, keep: int, options: DartOptions) -> TokenDropSpec:
        """One stage."""
        own = min(options.image_pivots, keep // 2)
        stages = (DropStage(options.after, keep),)
        return TokenDropSpec(cls.name, "duplicate", spec.vision.image_tokens, stages, own, options.text_pivots)
