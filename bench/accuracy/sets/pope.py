"""POPE: is there an X in the image? Three ways to choose what is not there; official files, or VLMEvalKit's table."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from edgevlm.bench.accuracy.items import Record, Skipped
from edgevlm.bench.accuracy.reading import BadRowError, Fields, Folder, read_lines, records, text
from edgevlm.bench.accuracy.sets.base import PLAIN, SHORT, DataSet, by_type, share
from edgevlm.bench.accuracy.sets.kit import read_table
from edgevlm.bench.job import Prediction
from edgevlm.bench.report import Figure

_TABLE = "POPE.tsv"
_PARTS = ("random", "popular", "adversarial")


def _read(folder: Folder, split: str) -> list[Record | Skipped]:
    table = folder.find(_TABLE)
    if table is not None:
        return read_table(table, lambda record, _: record if split in ("all", record.type) else None)
    found: list[Record | Skipped] = []
    for part in _PARTS if split == "all" else (split,):
        name = f"coco_pope_{part}.json"
        found += records(read_lines(folder.file(name, f"coco/{name}")), partial(_record, folder, part))
    return found


def _record(folder: Folder, part: str, row: Fields) -> Record:
    label = text(row, "label").strip().lower()
    if label not in ("yes", "no"):
        raise BadRowError("label is neither yes nor no")
    image = text(row, "image")
    return Record(
        id=f"{part}-{text(row, 'question_id')}",
        image_id=image,
        question=text(row, "text"),
        answers=(label,),
        pictures=(folder.picture(image, "val2014", "images", "."),),
        type=part,
    )


def figures(predictions: Sequence[Prediction], scorer: str) -> list[Figure]:
    """Precision, recall and F1 of yes, and the share of yes; over several parts the mean F1, as LLaVA gives it.

    lmms-eval takes the share of yes from the right answers, not from the model's.
    """
    parts = by_type(predictions)
    precision, recall, f1 = _scores(predictions, scorer)
    column = [p.answer if scorer == "pope/lmms-eval" else p.parsed for p in predictions]
    found = [
        Figure(name="precision", value=precision),
        Figure(name="recall", value=recall),
        Figure(name="F1", value=f1),
        Figure(name="yes ratio", value=share(sum(word.lower() == "yes" for word in column), len(column))),
    ]
    if len(parts) > 1:
        scores = [score for part in parts.values() if (score := _scores(part, scorer)[2]) is not None]
        found.append(Figure(name="mean F1 of the parts", value=sum(scores) / len(scores) if scores else None))
    return found


def _scores(predictions: Sequence[Prediction], scorer: str) -> tuple[float | None, float | None, float | None]:
    """Precision, recall and F1 of yes. To lmms-eval only a no misses a yes; what it cannot read does not."""
    wanted = [p.parsed for p in predictions if p.answer.lower() == "yes"]
    both = wanted.count("yes")
    missed = wanted.count("no") if scorer == "pope/lmms-eval" else len(wanted) - both
    precision = share(both, sum(p.parsed == "yes" for p in predictions))
    recall = share(both, both + missed)
    if not precision or not recall:
        return precision, recall, 0.0 if precision is not None and recall is not None else None
    return precision, recall, 2 * precision * recall / (precision + recall)


SET = DataSet(
    name="pope",
    title="POPE (COCO)",
    files=(f"coco_pope_random.json, _popular, _adversarial and val2014/COCO_val2014_*.jpg, or {_TABLE}",),
    splits=("all", *_PARTS),
    scorers=("pope/official", "pope/lmms-eval", "pope/vlmevalkit"),
    templates={"llava": SHORT, "plain": PLAIN},
    max_tokens=16,
    read=_read,
    counts={"all": 9_000, **dict.fromkeys(_PARTS, 3_000)},
    md5={_TABLE: "c12f5acb142f2ef1f85a26ba2fbe41d5"},
    figures=figures,
    notes="LLaVA pins a random part of 2,910 questions",
)
