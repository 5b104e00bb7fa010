"""What a data set declares: its files, splits, prompts, scorers, and the figures that its papers give."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from edgevlm.bench.accuracy.items import Record, Skipped
from edgevlm.bench.accuracy.reading import Folder
from edgevlm.bench.job import Prediction
from edgevlm.bench.report import Figure

# Wordings of prompts. `{hint}` is the hint and a line end, `{context}` the same behind "Context: ", both empty where
# there is none; `{options}` has a line each; `{ending}` is what a question brings with it; `{capitalised}` is the
# question with one capital, as lmms-eval writes those of TextVQA.
SHORT = "{hint}{question}\nAnswer the question using a single word or phrase."
LETTER = "{hint}{question}{options}\nAnswer with the option's letter from the given choices directly."
PLAIN = "{hint}{question}{options}"


@dataclass(frozen=True)
class Submission:
    """A file that somebody else scores: its name, and its text made of the answers."""

    name: str
    write: Callable[[Sequence[Prediction]], str]


@dataclass(frozen=True)
class DataSet:
    """One benchmark as its authors publish it.

    Attributes:
        title: as people call it.
        files: what its folder holds, for people.
        splits: the first is taken where none is named.
        scorers: ids; the first is the usual one. None: its answers are scored elsewhere.
        templates: name to prompt; the first is the usual one.
        max_tokens: enough for a right answer.
        read: records of a split, in the order of the file.
        counts: questions by split, as published.
        md5: of files whose hash is published.
        figures: what the papers give besides accuracy, from the answers and the scorer's id.
        units: answers that count together made one.
        submission: for a judge or a server.
        notes: what a reader of the score should know.
    """

    name: str
    title: str
    files: tuple[str, ...]
    splits: tuple[str, ...]
    scorers: tuple[str, ...]
    templates: Mapping[str, str]
    max_tokens: int
    read: Callable[[Folder, str], list[Record | Skipped]]
    counts: Mapping[str, int] = field(default_factory=dict)
    md5: Mapping[str, str] = field(default_factory=dict)
    figures: Callable[[Sequence[Prediction], str], list[Figure]] = lambda _predictions, _scorer: []
    units: Callable[[Sequence[Prediction]], list[Prediction]] = list
    submission: Submission | None = None
    notes: str = ""


def prompt(template: str, record: Record) -> str:
    """The record's question in the words of `template`."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    options = "".join(f"\n{letter}. {choice}" for letter, choice in zip(letters, record.choices, strict=False))
    return template.format(
        question=record.question,
        capitalised=record.question.capitalize(),
        options=options,
        ending=record.ending,
        hint=f"{record.hint}\n" if record.hint else "",
        context=f"Context: {record.hint}\n" if record.hint else "",
    )


def groups(predictions: Sequence[Prediction]) -> dict[str, list[Prediction]]:
    """Answers by their group, in the order in which groups first appear."""
    found: dict[str, list[Prediction]] = {}
    for prediction in predictions:
        found.setdefault(prediction.group or prediction.id, []).append(prediction)
    return found


def by_type(predictions: Sequence[Prediction]) -> dict[str, list[Prediction]]:
    """Answers by type, in the order in which types first appear."""
    found: dict[str, list[Prediction]] = {}
    for prediction in predictions:
        found.setdefault(prediction.type, []).append(prediction)
    return found


def share(right: int, n: int) -> float | None:
    """`right / n`, or None of nothing."""
    return right / n if n else None
