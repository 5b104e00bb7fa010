"""What is asked: records as a data set's files hold them, and items as a model is asked them.

A record knows where its pictures are; an item opens them when it is asked, so that a set of any size costs the memory
of one picture. Whatever cannot be asked becomes a `Skipped` with its reason, which the report counts and names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgevlm.imageio import load_image

Pixels: TypeAlias = NDArray[np.uint8]


@dataclass(frozen=True)
class Picture:
    """One picture of a data set.

    Attributes:
        name: the same for the same picture, for people and for clusters.
        read: its encoded bytes; raises `InputError` where it is missing or unsafe to open.
    """

    name: str
    read: Callable[[], bytes]

    def open(self) -> Pixels:
        """Decode to uint8 `[H, W, 3]`.

        Raises:
            InputError: it is missing, damaged or too large.
        """
        return np.asarray(load_image(self.read()))


@dataclass(frozen=True)
class Record:
    """One question of a data set.

    Attributes:
        id: unique in the set.
        image_id: of its picture; questions about one picture are resampled together.
        question: as the file has it.
        answers: every right answer; the first is shown. For a choice the letter; for soft scores one a person.
        pictures: in the order in which the question speaks of them.
        type: category, sub-task or the like, for a score of its own.
        choices: texts of options A, B, C ...; empty for an open question.
        hint: what is told beside the question.
        group: questions that count together (MME's pairs, rotations, NaturalBench's fours); empty for none.
        ending: what this question's own prompt ends with.
    """

    id: str
    image_id: str
    question: str
    answers: tuple[str, ...]
    pictures: tuple[Picture, ...]
    type: str = "all"
    choices: tuple[str, ...] = ()
    hint: str = ""
    group: str = ""
    ending: str = ""


@dataclass(frozen=True)
class Skipped:
    """A question that is not asked, and why."""

    id: str
    reason: str


@dataclass(frozen=True)
class Item:
    """One question as it is asked.

    Attributes:
        question: the whole prompt.
        open: decodes its pictures; raises `InputError` where one cannot be opened.
    """

    id: str
    image_id: str
    type: str
    question: str
    answers: tuple[str, ...]
    open: Callable[[], tuple[Pixels, ...]]
    choices: tuple[str, ...] = ()
    group: str = ""

    @property
    def answer(self) -> str:
        """The right answer that is shown."""
        return self.answers[0] if self.answers else ""

    @property
    def image(self) -> Pixels:
        """Its first picture, decoded."""
        return self.open()[0]
