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

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from edgevlm.models.taps import Taps, TokenReducer
from edgevlm.models.tiled import TiledVisionModel, TileReducer
from edgevlm.models.vlm import VisionModel, VlmModel
from edgevlm.pruning.tokens.selecting import take, top
from edgevlm.pruning.tokens.tile_budgets import Tiles, budgets, packed
from edgevlm.spec import LdpSpec, ModelSpec, ReducerSpec, RowsLayout, VisionSpec
from edgevlm.tile_tokens import first_crop


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
        shares_tiles: it sees all tiles of an image, and tells how many tokens each keeps.
        Options: what a user may set.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    source: ClassVar[str]
    uses_cls: ClassVar[bool] = False
    uses_attention: ClassVar[bool] = False
    needs_text: ClassVar[bool] = False
    inside_decoder: ClassVar[bool] = False
    shares_tiles: ClassVar[bool] = False
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
        text = spec.text_tower if cls.needs_text else None
        reducer = ReducerSpec(cls.name, keep, pairs, text=text)
        vision = dataclasses.replace(spec.vision, image_tokens=keep, reducer=reducer)
        return dataclasses.replace(spec, vision=vision)

    @classmethod
    def reduced(cls, model: VlmModel, keep: int, options: OptionsT) -> VlmModel:
        """The model with the method."""
        reducer, old = cls(model.spec.vision, keep, options), model.vision
        side = model.text_side if cls.needs_text else None
        patches, read = (None, ()) if side is None else (side.patches, side.sources)
        vision = VisionModel(old.encoder, old.projector, old.shuffle, reducer, patches).eval()
        sources = (*model.sources, *(path for path in read if path not in model.sources))
        return dataclasses.replace(model, spec=cls.planned(model.spec, keep, options), vision=vision, sources=sources)


class Selector(Reducer[OptionsT]):
    """A method that keeps some tokens as they are; before the projector, which is spared the others."""

    before_projector = True

    @abstractmethod
    def select(self, x: Tensor, taps: Taps) -> Tensor:
        """Embeddings `[B, N, C]` to the indexes `[B, K]` of those that are kept, ascending."""

    def forward(self, x: Tensor, taps: Taps) -> Tensor:
        """Embeddings `[B, N, C]` to `[B, K, C]`."""
        return take(x, self.select(x, taps))


class Ranking(Selector[OptionsT], TileReducer):
    """A selector that gives each token a score of its own and keeps the K highest.

    On the map of all tiles of an image (`RowsLayout`) each tile keeps K of the tokens that show some of the image; what
    has fewer leaves the rest to the others. A method with `shares_tiles` gives each tile its own K, on any layout.
    """

    #: Whether the view of the whole image is the first of several tiles, not the last.
    whole_first = True

    @abstractmethod
    def scores(self, x: Tensor, taps: Taps) -> Tensor:
        """Embeddings `[B, N, C]` to scores `[B, N]`, the higher the better."""

    def select(self, x: Tensor, taps: Taps) -> Tensor:
        """Indexes `[B, K]`."""
        return top(self.scores(x, taps), self.keep)

    def weights(self, taps: Taps, tiles: Tiles) -> Tensor:  # noqa: ARG002
        """Weights `[T]`, none below 0, by which tiles share the tokens."""
        return torch.ones_like(tiles.whole, dtype=torch.float32)

    def scores_among(self, x: Tensor, taps: Taps, tiles: Tiles) -> Tensor:  # noqa: ARG002
        """Scores `[T, N]` by which a tile's tokens are chosen where it is one of several."""
        return self.scores(x, taps)

    def share(self, x: Tensor, taps: Taps, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings of all tiles of an image `[T, N, C]` to `[T, K, C]`, packed, and their places `[T * K]`."""
        tiles = Tiles(boxes, self.vision.grid_side, whole_first=self.whole_first)
        scores = self.scores_among(x, taps, tiles)
        scores = torch.where(tiles.shown, scores, torch.finfo(scores.dtype).min)
        counts = budgets(self.weights(taps, tiles), tiles.shown.sum(dim=1), self.keep)
        return packed(x, scores, counts, self.keep)

    @classmethod
    def sees_all_tiles(cls, spec: ModelSpec) -> bool:
        """Whether the graph takes all tiles of an image at once."""
        on_map = isinstance(spec.prompt.image_layout, RowsLayout)
        return on_map or (cls.shares_tiles and spec.preprocess.tiles is not None)

    @classmethod
    def planned(cls, spec: ModelSpec, keep: int, options: OptionsT) -> ModelSpec:
        """The spec of the model with the method."""
        plan = super().planned(spec, keep, options)
        assert plan.vision.reducer is not None
        reducer = dataclasses.replace(plan.vision.reducer, shared=cls.sees_all_tiles(spec))
        return dataclasses.replace(plan, vision=dataclasses.replace(plan.vision, reducer=reducer))

    @classmethod
    def reduced(cls, model: VlmModel, keep: int, options: OptionsT) -> VlmModel:
        """The model with the method."""
        made = super().reduced(model, keep, options)
        if not cls.sees_all_tiles(model.spec):
            return made
        vision = made.vision
        assert isinstance(vision.reducer, Ranking)
        vision.reducer.whole_first = first_crop(model.spec) == 1
        tiled = TiledVisionModel(vision.encoder, vision.projector, vision.shuffle, vision.reducer).eval()
        return dataclasses.replace(made, vision=tiled)
