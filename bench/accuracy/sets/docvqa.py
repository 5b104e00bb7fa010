"""DocVQA validation: the official file and scanned pages, or VLMEvalKit's table."""

from __future__ import annotations

from edgevlm.bench.accuracy.items import Record, Skipped
from edgevlm.bench.accuracy.reading import (
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

_FILES, _TABLE = ("val_v1.0_withQT.json", "val_v1.0.json"), "DocVQA_VAL.tsv"


def _read(folder: Folder, _split: str) -> list[Record | Skipped]:
    path = folder.file(*_FILES, *(f"val/{name}" for name in _FILES), _TABLE)
    if path.suffix == ".tsv":
        return read_table(path)

    def make(row: Fields) -> Record:
        image = text(row, "image")
        return Record(
            id=text(row, "questionId"),
            image_id=image,
            question=text(row, "question"),
            answers=texts(row, "answers"),
            pictures=(folder.picture(image, ".", "val"),),
        )

    return records(numbered(json_list(json_dict(read_json(path), path).get("data"), path)), make)


SET = DataSet(
    name="docvqa",
    title="DocVQA val",
    files=(f"{_FILES[0]} or {_FILES[1]}, and documents/*.png, or {_TABLE}",),
    splits=("val",),
    scorers=("docvqa/official", "docvqa/m4c", "docvqa/lmms-eval"),
    templates={"llava": SHORT, "plain": PLAIN},
    max_tokens=32,
    read=_read,
    counts={"val": 5_349},
    md5={_TABLE: "d5ee77e1926ff10690d469c56b73eabf"},
)
