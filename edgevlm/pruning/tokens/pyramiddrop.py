"""PyramidDrop (arXiv 2410.17247): fewer image tokens behind each of several layers."""

from __future__ import annotations

from pydantic import Field

from edgevlm.pruning.tokens.inside_decoder import DecoderMethod
from edgevlm.pruning.tokens.reducer import Options
from edgevlm.spec import DropStage, ModelSpec, TokenDropSpec


class PyramidDropOptions(Options):
    """Options of PyramidDrop.

    Attributes:
        stages: times that tokens are dropped, evenly over the layers.
    """

    stages: int = Field(default=3, ge=1)


class PyramidDrop(DecoderMethod[PyramidDropOptions]):
    """FastV's score behind layer L s / (S + 1) for s = 1 to S; N (K / N)^(s / S) tokens go on, in the end K.

    With 32 layers, 576 tokens and K = 72 these are layers 8, 16 and 24, and half of the tokens each time.
    """

    name = "pyramiddrop"
    summary = "highest attention of the last prompt token, step by step behind several decoder layers"
    source = "PyramidDrop (arXiv 2410.17247)"
    Options = PyramidDropOptions

    @classmethod
    def refuses(cls, spec: ModelSpec, keep: int, options: PyramidDropOptions) -> str | None:  # noqa: ARG003
        """Why the method itself cannot be used on this model, or None."""
        layers = spec.decoder.num_hidden_layers
        return None if options.stages < layers else f"its {layers} layers have room for {layers - 1} stages at most"

    @classmethod
    def drop(cls, spec: ModelSpec, keep: int, options: PyramidDropOptions) -> TokenDropSpec:
        """Stages with falling counts."""
        tokens, layers, count = spec.vision.image_tokens, spec.decoder.num_hidden_layers, options.stages
        stages = tuple(
            DropStage(layers * stage // (count + 1), round(tokens * (keep / tokens) ** (stage / count)))
            for stage in range(1, count + 1)
        )
        return TokenDropSpec(cls.name, "attention", tokens, stages)
