"""MM-Vet: its answers are scored by a judge, so they are asked and written as the judge takes them, and not scored."""

from __future__ import annotations

import json
from collections.abc import Sequence

from edgevlm.bench.accuracy.items import Record, Skipped
from edgevlm.bench.accuracy.reading import Fields, Folder, json_dict, read_json, records, text
from edgevlm.bench.accuracy.sets.base import PLAIN, DataSet, Submission
from edgevlm.bench.job import Prediction

_FILE = "mm-vet.json"


def _read(folder: Folder, _split: str) -> list[Record | Skipped]:
    path = folder.file(_FILE)
    rows = (
        (f"question {key}", {**row, "id": key} if isinstance(row, dict) else row)
        for key, row in json_dict(read_json(path), path).items()
    )

    def make(row: Fields) -> Record:
        image = text(row, "imagename")
        return Record(
            id=text(row, "id"),
            image_id=image,
            question=text(row, "question"),
            answers=(),
            pictures=(folder.picture(image, "images", "."),),
        )

    return records(rows, make)


def submission(predictions: Sequence[Prediction]) -> str:
    """Id to answer, as the judge takes them."""
    return json.dumps({p.id: p.predicted for p in predictions}, ensure_ascii=False, indent=1)


SET = DataSet(
    name="mmvet",
    title="MM-Vet",
    files=(f"{_FILE} and images/*",),
    splits=("test",),
    scorers=(),
    templates={"official": PLAIN},
    max_tokens=512,
    read=_read,
    counts={"test": 218},
    submission=Submission("mmvet_answers.json", submission),
    notes="scored by a judge, from the file that is written",
)
