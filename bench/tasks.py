"""The accuracy tasks by name: where their items come from, what chance gives, and which rule scores an answer.

Two are generated, `scenes` and `digits`; the others are data sets in a folder (`edgevlm.bench.accuracy.sets`). All come
out as a `Task`, and the bench treats them alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgevlm.bench.accuracy.items import Item, Pixels, Record, Skipped
from edgevlm.bench.accuracy.reading import Folder
from edgevlm.bench.accuracy.scorers import SCORERS
from edgevlm.bench.accuracy.scorers.base import Scorer
from edgevlm.bench.accuracy.sets import SETS
from edgevlm.bench.accuracy.sets.base import DataSet, Submission, prompt
from edgevlm.bench.job import Prediction
from edgevlm.bench.report import Figure
from edgevlm.errors import InputError
from edgevlm.zoo import digit_pages, scenes


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        items: `(split, n, seed)` to items, those of one image next to each other; some may be skipped already.
        chance: of a split and a question type, the accuracy of the best guess without the image.
        splits: the splits there are; the first is taken where none is named.
        scorer: the rule; None where answers are scored elsewhere.
        max_tokens: enough for any right answer.
        total: of a split, how many items there are; None without end.
        count: of `(split, n, seed)`, how many are asked: what counts together is taken together.
        template: name and wording of the prompt; empty for generated tasks.
        fingerprint: SHA-256 over the files that hold the questions, once they were read; empty for generated tasks.
        figures: what papers give besides accuracy, from answers and the scorer's id.
        units: answers that count together made one.
        submission: a file for a judge or a server.
    """

    items: Callable[[str, int, int], Iterator[Item | Skipped]]
    chance: Callable[[str, str], float]
    splits: tuple[str, ...]
    scorer: Scorer | None
    max_tokens: int
    total: Callable[[str], int | None]
    count: Callable[[str, int, int], int]
    template: str = ""
    fingerprint: Callable[[], str] = str
    figures: Callable[[Sequence[Prediction], str], list[Figure]] = lambda _predictions, _scorer: []
    units: Callable[[Sequence[Prediction]], list[Prediction]] = list
    submission: Submission | None = None


def _shown(image: Pixels) -> Callable[[], tuple[Pixels, ...]]:
    return lambda: (image,)


def _scenes(split: str, n: int, seed: int) -> Iterator[Item]:
    for item in scenes.scenes(split, n, seed):
        yield Item(
            id=item.id,
            image_id=item.image_id,
            type=item.type,
            question=item.question,
            answers=(item.answer,),
            open=_shown(item.image),
        )


def _digits(split: str, n: int, seed: int) -> Iterator[Item]:
    for index in digit_pages.page_order(split, seed)[:n]:
        digit, image = digit_pages.page(index)
        name = f"digit-{index:04d}"
        yield Item(name, name, f"digit {digit}", digit_pages.QUESTION, (str(digit),), _shown(image))


GENERATED = {
    "scenes": Task(
        items=_scenes,
        chance=lambda _split, kind: scenes.chance(kind),
        splits=("test", "train", "calibration"),
        scorer=SCORERS["exact"],
        max_tokens=16,
        total=lambda _: None,
        count=lambda _split, n, _seed: n,
    ),
    "digits": Task(
        items=_digits,
        chance=lambda _split, _kind: 1 / 10,
        splits=digit_pages.PAGE_SPLITS,
        scorer=SCORERS["exact"],
        max_tokens=16,
        total=lambda split: len(digit_pages.page_order(split, 0)),
        count=lambda split, n, seed: len(digit_pages.page_order(split, seed)[:n]),
    ),
}

#: Every name that `--tasks` knows.
TASKS = (*GENERATED, *SETS)


def find_task(name: str, data: str = "", images: str = "", scorer: str = "", template: str = "") -> Task:
    """The task of that name.

    Args:
        name: one of `TASKS`.
        data: folder of a data set's files; generated tasks take none.
        images: folder of its pictures, if that is another one.
        scorer: id of the rule; empty for the usual one.
        template: name of the prompt's wording; empty for the usual one.

    Raises:
        InputError: there is no such task, folder, scorer or template.
    """
    if name in GENERATED:
        if data or images or scorer or template:
            raise InputError(
                f"{name} is generated: it takes no folder, scorer or template", "--tasks", f"give {name} alone"
            )
        return GENERATED[name]
    if name not in SETS:
        raise InputError(f"unknown task {name!r:.40}", "--tasks", f"tasks: {', '.join(TASKS)}")
    if not data:
        raise InputError(f"{name} needs the folder of its files", "--tasks", f"give --tasks {name}:FOLDER")
    return _from_files(SETS[name], Folder(Path(data), Path(images) if images else None), scorer, template)


def _from_files(known: DataSet, folder: Folder, scorer: str, template: str) -> Task:
    if scorer and scorer not in known.scorers:
        raise InputError(
            f"{known.name} has no scorer {scorer!r:.40}", "--scorer", f"scorers: {', '.join(known.scorers) or 'none'}"
        )
    if template and template not in known.templates:
        raise InputError(
            f"{known.name} has no template {template!r:.40}", "--template", f"templates: {', '.join(known.templates)}"
        )
    wording = template or next(iter(known.templates))
    entries: dict[str, list[Record | Skipped]] = {}

    def read(split: str) -> list[Record | Skipped]:
        if split not in entries:
            entries[split] = known.read(folder, split)
        return entries[split]

    def items(split: str, n: int, seed: int) -> Iterator[Item | Skipped]:
        for entry in choose(read(split), n, seed):
            yield entry if isinstance(entry, Skipped) else _item(entry, known.templates[wording])

    return Task(
        items=items,
        chance=lambda split, kind: _chance([entry for entry in read(split) if isinstance(entry, Record)], kind),
        splits=known.splits,
        scorer=SCORERS[scorer or known.scorers[0]] if known.scorers else None,
        max_tokens=known.max_tokens,
        total=lambda split: len(read(split)),
        count=lambda split, n, seed: len(choose(read(split), n, seed)),
        template=f"{wording}: {known.templates[wording]}",
        fingerprint=folder.fingerprint,
        figures=known.figures,
        units=known.units,
        submission=known.submission,
    )


def choose(entries: Sequence[Record | Skipped], n: int, seed: int) -> list[Record | Skipped]:
    """`n` entries or a few more, in the order of the file: drawn by `seed`, what counts together is taken together."""
    if n >= len(entries):
        return list(entries)
    units: dict[str, list[int]] = {}
    for index, entry in enumerate(entries):
        units.setdefault(
            f"group {entry.group}" if isinstance(entry, Record) and entry.group else str(index), []
        ).append(index)
    names = list(units)
    taken: list[int] = []
    for place in np.random.default_rng(seed).permutation(len(names)):
        if len(taken) >= n:
            break
        taken += units[names[int(place)]]
    return [entries[index] for index in sorted(taken)]


def _item(record: Record, template: str) -> Item:
    def open_() -> tuple[Pixels, ...]:
        return tuple(picture.open() for picture in record.pictures)

    return Item(
        id=record.id,
        image_id=record.image_id,
        type=record.type,
        question=prompt(template, record),
        answers=record.answers,
        open=open_,
        choices=record.choices,
        group=record.group,
    )


def _chance(records: Sequence[Record], kind: str) -> float:
    """The mean over questions of that type: one over the options, one half of yes and no, 0 of an open question."""
    guesses = [_guess(record) for record in records if record.type == kind]
    return sum(guesses) / len(guesses) if guesses else 0.0


def _guess(record: Record) -> float:
    if record.choices:
        return 1 / len(record.choices)
    return 0.5 if record.answers and record.answers[0].strip().lower() in ("yes", "no") else 0.0
