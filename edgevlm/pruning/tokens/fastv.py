"""FastV (arXiv 2403.06764): behind an early layer the image tokens that the prompt's last token looks at."""

from __future__ import annotations

from pydantic import Field

from edgevlm.pruning.tokens.inside_decoder import DecoderMethod, layer_refusal
from edgevlm.pruning.tokens.reducer import Options
from edgevlm.spec import DropStage, ModelSpec, TokenDropSpec


class FastVOptions(Options):
    """Options of FastV.

    Attributes:
        after: layers that all tokens go through; the attention of the last of them decides.
    """

    after: int = Field(default=2, ge=1)


class FastV(DecoderMethod[FastVOptions]):
    """s = mean over heads of the last token's attention in layer `after`; the K highest go on."""

    name = "fastv"
    summary = "highest attention of the last prompt token, behind a decoder layer"
    source = "FastV (arXiv 2403.06764)"
    Options = FastVOptions

    @classmethod
    def refuses(cls, spec: ModelSpec, keep: int, options: FastVOptions) -> str | None:  # noqa: ARG003
        """Why the method itself cannot be used on this model, or None."""
        return layer_refusal(spec, options.after)

    @classmethod
    def drop(cls, spec: ModelSpec, keep: int, options: FastVOptions) -> TokenDropSpec:
        """One stage."""
        return TokenDropSpec(cls.name, "attention", spec.vision.image_tokens, (DropStage(options.after, keep),))
