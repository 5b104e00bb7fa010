"""What a method of reducing visual tokens is: its description, what it refuses, and the module that does it.

A method is one class in one file: how people know it, what it needs, and, for those in front of the decoder, `forward`,
from the embeddings of an image `[B, N, C]` to fewer `[B, K, C]`. K is fixed, so that the whole stands in the vision
graph. Ties are broken in favour of the token that comes first, and with `select`, the tokens that are kept stay in
their order. Methods inside the decoder are in `edgevlm.pruning.tokens.inside_decoder`.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from typing import ClassVar, Generic, TypeVar

from pydantic import BaseModel, ConfigDict
from torch import Tensor

from edgevlm.models.taps import Taps, TokenReducer
from edgevlm.models.vlm import VisionModel, VlmModel
from edgevlm.pruning.tokens.selecting import take, top
from edgevlm.spec import LdpSpec, ModelSpec, ReducerSpec, VisionSpec


class Options(BaseModel):
    """Options of a method; this one has none."""

    model_config = ConfigDict(extra="forbid", frozen=True)


OptionsT = TypeVar("OptionsT", bound=Options)


class Method(ABC, Generic[OptionsT]):
    """One method.

    Attributes:
        name: by which recipes know it.
        summary: what it does, in one line.
        source: where it was published.
        uses_cls: it reads the attention of the encoder's class token.
        uses_attention: it reads queries or keys of the encoder.
        needs_text: it reads the prompt.
        inside_decoder: it reduces between two layers of the decoder.
        Options: what a user may set.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    source: ClassVar[str]
    uses_cls: ClassVar[bool] = False
    uses_attention: ClassVar[bool] = False
    needs_text: ClassVar[bool] = False
    inside_decoder: ClassVar[bool] = False
    Options: ClassVar[type[Options]] = Options

    @classmethod
    def refuses(cls, spec: ModelSpec, keep: int, options: OptionsT) -> str | None:  # noqa: ARG003
        """Why the method itself cannot be used on this model, or None."""
        return None

    @classmethod
    @abstractmethod
    def planned(cls, spec: ModelSpec, keep: int, options: OptionsT) -> ModelSpec:
        """The spec of the model with the method."""

    @classmethod
    @abstractmethod
    def reduced(cls, model: VlmModel, keep: int, options: OptionsT) -> VlmModel:
        """The model with the method."""


class Reducer(Method[OptionsT], TokenReducer):
    """A method in the vision graph."""

    def __init__(self, vision: VisionSpec, keep: int, options: OptionsT) -> None:
        """Make the module for a vision side as it is without it; `refuses` has been asked."""
        super().__init__()
        self.vision = vision
        self.keep = keep
        self.options = options
        # A projector that joins neighbours needs all of them.
        self.before_projector = self.before_projector and not isinstance(vision.projector, LdpSpec)

    @abstractmethod
    def forward(self, x: Tensor, taps: Taps) -> Tensor:
        """Embeddings `[B, N, C]` to `[B, K, C]`."""

    @classmethod
    def planned(cls, spec: ModelSpec, keep: int, options: OptionsT) -> ModelSpec:
        """The spec of the model with the method."""
        pairs = tuple((name, str(value)) for name, value in options.model_dump().items() if value is not None)
        vision = dataclasses.replace(spec.vision, image_tokens=keep, reducer=ReducerSpec(cls.name, keep, pairs))
        return dataclasses.replace(spec, vision=vision)

    @classmethod
    def reduced(cls, model: VlmModel, keep: int, options: OptionsT) -> VlmModel:
        """The model with the method."""
        reducer, old = cls(model.spec.vision, keep, options), model.vision
        vision = VisionModel(old.encoder, old.projector, old.shuffle, reducer).eval()
        return dataclasses.replace(model, spec=cls.planned(model.spec, keep, options), vision=vision)


class Selector(Reducer[OptionsT]):
    """A method that keeps some tokens as they are; before the projector, which is spared the others."""

    before_projector = True

    @abstractmethod
    def select(self, x: Tensor, taps: Taps) -> Tensor:
        """Embeddings `[B, N, C]` to the indexes `[B, K]` of those that are kept, ascending."""

    def forward(self, x: Tensor, taps: Taps) -> Tensor:
        """Embeddings `[B, N, C]` to `[B, K, C]`."""
        return take(x, self.select(x, taps))


class Ranking(Selector[OptionsT]):
    """A selector that gives each token a score of its own and keeps the K highest."""

    @abstractmethod
    def scores(self, x: Tensor, taps: Taps) -> Tensor:
        """Embeddings `[B, N, C]` to scores `[B, N]`, the higher the better."""

    def select(self, x: Tensor, taps: Taps) -> Tensor:
        """Indexes `[B, K]`."""
        return top(self.scores(x, taps), self.keep)
