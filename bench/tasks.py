"""The accuracy tasks by name: where their items come from, what chance gives, and which rule calls an answer right."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from edgevlm.errors import InputError
from edgevlm.zoo import scenes


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        items: `(split, n, seed)` to items, those of one image next to each other.
        chance: of a question type, the accuracy of the best guess without the image.
        splits: the splits there are.
        scorer: name of the rule, for the report.
        right: `(predicted, answer)` to right or wrong.
        max_tokens: enough for any right answer.
    """

    items: Callable[[str, int, int], Iterator[scenes.Item]]
    chance: Callable[[str], float]
    splits: tuple[str, ...]
    scorer: str
    right: Callable[[str, str], bool]
    max_tokens: int


def normalised(text: str) -> str:
    """Lower case, without surrounding white space or a final full stop."""
    return text.strip().lower().removesuffix(".").rstrip()


def exact_match(predicted: str, answer: str) -> bool:
    """Whether the two are equal once normalised."""
    return normalised(predicted) == normalised(answer)


TASKS = {
    "scenes": Task(
        items=scenes.scenes,
        chance=scenes.chance,
        splits=("train", "calibration", "test"),
        scorer="exact match (lower case, stripped, without a final full stop)",
        right=exact_match,
        max_tokens=16,
    ),
}


def find_task(name: str) -> Task:
    """The task of that name.

    Raises:
        InputError: there is none.
    """
    if name not in TASKS:
        raise InputError(f"unknown task {name!r}", "--tasks", f"tasks: {', '.join(TASKS)}")
    return TASKS[name]
