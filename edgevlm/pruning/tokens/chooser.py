"""What a method is that chooses, from calibration images, how many tokens another method keeps.

A chooser is a class in a file of its own, like a method. In: a model and calibration samples. Out: a `Choice`, which is
what a user might have written: a method, its K and its options. The bundle is made by that, and its recipe says that.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Generic

from edgevlm.models.vlm import VlmModel
from edgevlm.passes import PassContext
from edgevlm.pruning.tokens.reducer import Options, OptionsT
from edgevlm.spec import ModelSpec


@dataclass(frozen=True)
class Choice:
    """What was chosen.

    Attributes:
        method: a name of `REDUCERS`.
        keep: its K.
        options: its options, as in a recipe.
        reason: a sentence for people: who chose, from what, and by which figures.
    """

    method: str
    keep: int
    reason: str
    options: Mapping[str, str] = field(default_factory=dict)


class Chooser(ABC, Generic[OptionsT]):
    """One such method; its attributes are those of `Method`."""

    name: ClassVar[str]
    summary: ClassVar[str]
    source: ClassVar[str]
    uses_cls: ClassVar[bool] = False
    uses_attention: ClassVar[bool] = False
    needs_text: ClassVar[bool] = False
    inside_decoder: ClassVar[bool] = False
    Options: ClassVar[type[Options]] = Options

    @classmethod
    @abstractmethod
    def supposed(cls, spec: ModelSpec, options: OptionsT) -> Choice:
        """A choice such as might be made: what it refuses is refused before weights are read."""

    @classmethod
    def refuses(cls, spec: ModelSpec, options: OptionsT) -> str | None:  # noqa: ARG003
        """Why there is nothing to choose for this model, or None; asked before `supposed`."""
        return None

    @classmethod
    @abstractmethod
    def choose(cls, model: VlmModel, context: PassContext, options: OptionsT) -> Choice:
        """How many tokens to keep.

        Args:
            model: without any method.
            context: with calibration samples.
            options: the chooser's own.

        Raises:
            InputError: the samples allow no choice.
        """
