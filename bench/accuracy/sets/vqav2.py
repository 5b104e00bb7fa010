"""VQAv2 validation: the official question and annotation files and COCO's pictures of val2014."""

from __future__ import annotations

import json
from collections.abc import Sequence

from edgevlm.bench.accuracy.items import Record, Skipped
from edgevlm.bench.accuracy.reading import (
    BadRowError,
    Fields,
    Folder,
    json_dict,
    json_list,
    numbered,
    read_json,
    records,
    text,
)
from edgevlm.bench.accuracy.sets.base import PLAIN, SHORT, DataSet, Submission
from edgevlm.bench.job import Prediction

_QUESTIONS = "v2_OpenEnded_mscoco_val2014_questions.json"
_ANNOTATIONS = "v2_mscoco_val2014_annotations.json"


def _read(folder: Folder, _split: str) -> list[Record | Skipped]:
    questions, annotations = folder.file(_QUESTIONS), folder.file(_ANNOTATIONS)
    rows = json_list(json_dict(read_json(questions), questions).get("questions"), questions)
    given = json_list(json_dict(read_json(annotations), annotations).get("annotations"), annotations)
    known = {entry.get("question_id"): entry for entry in given if isinstance(entry, dict)}

    def make(row: Fields) -> Record:
        annotation = known.get(row.get("question_id"))
        if annotation is None:
            raise BadRowError("it has no annotation")
        entries = annotation.get("answers")
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries) or len(entries) < 2:
            raise BadRowError("its annotation has no answers")
        try:
            image = int(text(row, "image_id"))
        except ValueError:
            raise BadRowError("image_id is no number") from None
        name = f"COCO_val2014_{image:012d}.jpg"
        return Record(
            id=text(row, "question_id"),
            image_id=str(image),
            question=text(row, "question"),
            answers=tuple(text(entry, "answer") for entry in entries),
            pictures=(folder.picture(name, "val2014", "."),),
            type=str(annotation.get("answer_type") or "all"),
        )

    return records(numbered(rows), make)


def submission(predictions: Sequence[Prediction]) -> str:
    """The results file of the VQA server: a list of question_id and answer."""
    entries = [
        {"question_id": int(p.id) if p.id.isdecimal() else p.id, "answer": p.predicted.strip()} for p in predictions
    ]
    return json.dumps(entries, ensure_ascii=False)


SET = DataSet(
    name="vqav2",
    title="VQAv2 val",
    files=(_QUESTIONS, _ANNOTATIONS, "val2014/COCO_val2014_*.jpg"),
    splits=("val",),
    scorers=("vqa/official", "vqa/lavis", "vqa/m4c"),
    templates={"llava": SHORT, "plain": PLAIN},
    max_tokens=16,
    read=_read,
    counts={"val": 214_354},
    submission=Submission("vqa_results.json", submission),
)
