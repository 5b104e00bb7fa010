"""What a pass is: one step that makes a model smaller, between the loader and the exporter.

A pass is made from what the user wrote about it (its `Config`), refuses models by their spec alone, tells how it will
change that spec, and then turns a `VlmModel` into another. `edgevlm.pipeline.passes` knows all passes by name and which
orders are legal.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar, Generic, TypeVar

from pydantic import BaseModel

from edgevlm.calibration import Calibration
from edgevlm.models.vlm import VlmModel
from edgevlm.progress import Report
from edgevlm.recipe import PassEntry, Recipe
from edgevlm.spec import ModelSpec

ConfigT = TypeVar("ConfigT", bound=BaseModel)


class Stage(IntEnum):
    """When a pass runs: a pass never comes after one of a later stage, for the reason that stands beside each."""

    #: What later passes see of calibration images is what the decoder will see of images.
    TOKENS = 1
    #: Layers, channels and vocabulary that go take the zeros and the training of later stages with them.
    STRUCTURE = 2
    #: Weights become zero.
    SPARSITY = 3
    #: What is left is trained.
    HEALING = 4
    #: Numbers get narrow, and are not computed with any more.
    QUANTIZATION = 5


@dataclass(frozen=True)
class PassContext:
    """What a pass may look at beside the model that it changes.

    Attributes:
        calibration: the samples; None where the user gave none.
        original: the model before any weight was changed; its image tokens may be fewer already.
        progress: called with work done, work in all, and what is being done.
    """

    calibration: Calibration | None
    original: VlmModel
    progress: Report


class Pass(ABC, Generic[ConfigT]):
    """One step of a recipe.

    Attributes:
        name: by which recipes know it.
        stage: when it runs.
        needs_calibration: it is refused where the user gave no calibration data.
        repeats: a recipe may have it more than once.
        excludes: passes that it cannot share a recipe with, and why.
        Config: what a user may write about it (`extra="forbid"`).
        page: where it is explained.
    """

    name: ClassVar[str]
    stage: ClassVar[Stage]
    repeats: ClassVar[bool] = False
    excludes: ClassVar[Mapping[str, str]] = {}
    Config: ClassVar[type[BaseModel]]
    page: ClassVar[str] = "docs/pruning.md"
    #: May depend on the configuration.
    needs_calibration: bool = False

    def __init__(self, config: ConfigT, seed: int) -> None:
        """Keep what the user wrote, and the seed of everything drawn at random.

        Raises:
            InputError: the fields do not go together.
        """
        self.config = config
        self.seed = seed

    def settled(self) -> PassEntry | None:
        """After `run`, what a recipe says to get the same again, where the pass chose something; None elsewhere."""
        return None

    def fits(self, recipe: Recipe) -> str | None:
        """Why the pass cannot stand in this recipe, or None."""
        del recipe
        return None

    @abstractmethod
    def applies_to(self, spec: ModelSpec) -> str | None:
        """Why this model cannot take the pass, or None."""

    def planned(self, spec: ModelSpec) -> ModelSpec:
        """The spec after the pass, as far as it is known before weights are read; `applies_to` has been asked.

        As it was, unless the pass says otherwise.
        """
        return spec

    @abstractmethod
    def run(self, model: VlmModel, context: PassContext) -> VlmModel:
        """The model after the pass; the one given stays as it is.

        Raises:
            EdgeVLMError: the weights or the calibration data do not allow it.
        """
