"""GQA test-dev, balanced: the official question file and pictures, or VLMEvalKit's table."""

from __future__ import annotations

import json
from collections.abc import Sequence

from edgevlm.bench.accuracy.items import Record, Skipped
from edgevlm.bench.accuracy.reading import Fields, Folder, json_dict, read_json, records, text
from edgevlm.bench.accuracy.sets.base import PLAIN, SHORT, DataSet, Submission
from edgevlm.bench.accuracy.sets.kit import read_table
from edgevlm.bench.job import Prediction

_FILE, _TABLE = "testdev_balanced_questions.json", "GQA_TestDev_Balanced.tsv"


def _read(folder: Folder, _split: str) -> list[Record | Skipped]:
    path = folder.file(_FILE, _TABLE)
    if path.suffix == ".tsv":
        return read_table(path)
    rows = (
        (f"question {key}", {**row, "questionId": key} if isinstance(row, dict) else row)
        for key, row in json_dict(read_json(path), path).items()
    )

    def make(row: Fields) -> Record:
        image = text(row, "imageId")
        types = row.get("types")
        return Record(
            id=text(row, "questionId"),
            image_id=image,
            question=text(row, "question"),
            answers=(text(row, "answer"),),
            pictures=(folder.picture(f"{image}.jpg", "images", "."),),
            type=str(types.get("structural") or "all") if isinstance(types, dict) else "all",
        )

    return records(rows, make)


def submission(predictions: Sequence[Prediction]) -> str:
    """The predictions file of the official script."""
    return json.dumps([{"questionId": p.id, "prediction": p.predicted.rstrip(".").lower()} for p in predictions])


SET = DataSet(
    name="gqa",
    title="GQA test-dev (balanced)",
    files=(f"{_FILE} and images/*.jpg, or {_TABLE}",),
    splits=("testdev",),
    scorers=("gqa/llava", "gqa/lmms-eval"),
    templates={"llava": SHORT, "plain": PLAIN},
    max_tokens=16,
    read=_read,
    counts={"testdev": 12_578},
    md5={_TABLE: "99b62f22e224d9b2f32dcbe41359d1c9"},
    submission=Submission("testdev_balanced_predictions.json", submission),
)
