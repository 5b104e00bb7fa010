"""PyramidDrop (arXiv 2410.17247): fewer image tokens behind each of several layers."""

from __future__ import annotations

from itertools import pairwise

from pydantic import Field, model_validator

from edgevlm.pruning.tokens.inside_decoder import DecoderMethod
from edgevlm.pruning.tokens.reducer import Options
from edgevlm.spec import DropStage, ModelSpec, TokenDropSpec


class PyramidDropOptions(Options):
    """Options of PyramidDrop.

    Attributes:
        stages: times that tokens are dropped, evenly over the layers, or
        counts: `LAYERS:K/LAYERS:K...`, what goes on behind so many layers, stage by stage; the last is K.
    """

    stages: int = Field(default=3, ge=1)
    counts: str | None = Field(default=None, pattern=r"^[0-9]{1,9}:[0-9]{1,9}(/[0-9]{1,9}:[0-9]{1,9})*$")

    @model_validator(mode="after")
    def _one(self) -> PyramidDropOptions:
        if self.counts is not None and "stages" in self.model_fields_set:
            raise ValueError("give stages or counts")
        return self

    @property
    def given(self) -> tuple[DropStage, ...]:
        """The stages that `counts` says."""
        pairs = (stage.split(":") for stage in (self.counts or "").split("/") if stage)
        return tuple(DropStage(int(layers), int(keep)) for layers, keep in pairs)


class PyramidDrop(DecoderMethod[PyramidDropOptions]):
    """FastV's score behind layer L s / (S + 1) for s = 1 to S; N (K / N)^(s / S) tokens go on, in the end K.

    With 32 layers, 576 tokens and K = 72 these are layers 8, 16 and 24, and half of the tokens each time. Other layers
    and counts may be given.
    """

    name = "pyramiddrop"
    summary = "highest attention of the last prompt token, step by step behind several decoder layers"
    source = "PyramidDrop (arXiv 2410.17247)"
    Options = PyramidDropOptions

    @classmethod
    def refuses(cls, spec: ModelSpec, keep: int, options: PyramidDropOptions) -> str | None:
        """Why the method itself cannot be used on this model, or None."""
        layers = spec.decoder.num_hidden_layers
        if options.given:
            return _disorder(options.given, layers, spec.vision.image_tokens, keep)
        return None if options.stages < layers else f"its {layers} layers have room for {layers - 1} stages at most"

    @classmethod
    def drop(cls, spec: ModelSpec, keep: int, options: PyramidDropOptions) -> TokenDropSpec:
        """Stages with falling counts."""
        tokens, count = spec.vision.image_tokens, options.stages
        stages = options.given or tuple(
            DropStage(layers, round(tokens * (keep / tokens) ** (stage / count)))
            for stage, layers in enumerate(even_layers(spec.decoder.num_hidden_layers, count), 1)
        )
        return TokenDropSpec(cls.name, "attention", tokens, stages)


def even_layers(layers: int, stages: int) -> list[int]:
    """After how many of the layers each stage comes; ascending where there are fewer stages than layers."""
    return [layers * stage // (stages + 1) for stage in range(1, stages + 1)]


def _disorder(stages: tuple[DropStage, ...], layers: int, tokens: int, keep: int) -> str | None:
    """Why stages cannot be had, or None."""
    places = [0, *(stage.after_layers for stage in stages), layers]
    counts = [tokens + 1, *(stage.keep for stage in stages), 0]
    if any(later <= earlier for earlier, later in pairwise(places)):
        return f"it has {layers} layers, so those of 'counts' ascend from 1 to {layers - 1}"
    if any(later >= earlier for earlier, later in pairwise(counts)):
        return f"of {tokens} tokens fewer and fewer go on, 1 at least, which 'counts' does not say"
    return None if stages[-1].keep == keep else f"'counts' ends with {stages[-1].keep} tokens, not with {keep}"
