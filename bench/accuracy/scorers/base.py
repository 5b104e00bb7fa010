"""What a scorer is: a named rule that reads an answer and gives it credit between 0 and 1."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Gold:
    """What a scorer knows of a question: its id, the right answers, and the texts of options A, B, C ..."""

    id: str
    answers: tuple[str, ...]
    choices: tuple[str, ...] = ()

    @property
    def letters(self) -> str:
        """The letters of the options."""
        return "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(self.choices)]


@dataclass(frozen=True)
class Scorer:
    """One rule.

    Attributes:
        id: `benchmark/origin`, as the report names it.
        rule: in a sentence.
        parse: what the rule reads in an answer.
        credit: for what was read, 0 to 1.
    """

    id: str
    rule: str
    parse: Callable[[str, Gold], str]
    credit: Callable[[str, Gold], float]


def as_said(predicted: str, _: Gold) -> str:
    """The answer itself."""
    return predicted


def is_first(parsed: str, gold: Gold) -> float:
    """Whether it is the right answer, to the letter."""
    return float(parsed == gold.answers[0])
