"""TextVQA validation: the official file and pictures, or VLMEvalKit's table.

OCR tokens, which LLaVA writes into its prompts, are not told: scores with them are several points higher.
"""

from __future__ import annotations

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
    texts,
)
from edgevlm.bench.accuracy.sets.base import PLAIN, SHORT, DataSet
from edgevlm.bench.accuracy.sets.kit import read_table

_FILE, _TABLE = "TextVQA_0.5.1_val.json", "TextVQA_VAL.tsv"


def _read(folder: Folder, _split: str) -> list[Record | Skipped]:
    path = folder.file(_FILE, _TABLE)
    if path.suffix == ".tsv":
        return read_table(path)

    def make(row: Fields) -> Record:
        image = text(row, "image_id")
        answers = texts(row, "answers")
        if len(answers) < 2:
            raise BadRowError("answers are missing")
        return Record(
            id=text(row, "question_id"),
            image_id=image,
            question=text(row, "question"),
            answers=answers,
            pictures=(folder.picture(f"{image}.jpg", "train_images", "train_val_images/train_images", "."),),
        )

    return records(numbered(json_list(json_dict(read_json(path), path).get("data"), path)), make)


SET = DataSet(
    name="textvqa",
    title="TextVQA val",
    files=(f"{_FILE} and train_images/*.jpg, or {_TABLE}",),
    splits=("val",),
    scorers=("vqa/m4c", "vqa/official"),
    templates={
        "llava": SHORT,
        "lmms-eval": "{capitalised}\nAnswer the question using a single word or phrase.",
        "plain": PLAIN,
    },
    max_tokens=16,
    read=_read,
    counts={"val": 5_000},
    md5={_TABLE: "b233b31f551bbf4056f2f955da3a92cd"},
    notes="no OCR tokens in the prompt",
)
