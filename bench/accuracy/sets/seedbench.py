"""SEED-Bench, the questions about images: the official file and pictures, or VLMEvalKit's table."""

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
)
from edgevlm.bench.accuracy.sets.base import LETTER, PLAIN, DataSet
from edgevlm.bench.accuracy.sets.kit import read_table

_FILE, _TABLE = "SEED-Bench.json", "SEEDBench_IMG.tsv"


def _read(folder: Folder, _split: str) -> list[Record | Skipped]:
    path = folder.file(_FILE, _TABLE)
    if path.suffix == ".tsv":
        return read_table(path)
    whole = json_dict(read_json(path), path)
    kinds = whole.get("question_type")
    names = {number: name for name, number in kinds.items()} if isinstance(kinds, dict) else {}

    def make(row: Fields) -> Record | None:
        if row.get("data_type") != "image":
            return None
        answer = text(row, "answer").strip()
        if answer not in ("A", "B", "C", "D"):
            raise BadRowError("answer is not A, B, C or D")
        image = text(row, "data_id")
        return Record(
            id=text(row, "question_id"),
            image_id=image,
            question=text(row, "question"),
            answers=(answer,),
            pictures=(folder.picture(image, "SEED-Bench-image", "."),),
            type=str(names.get(row.get("question_type_id"), "all")),
            choices=tuple(text(row, f"choice_{letter}") for letter in "abcd"),
        )

    return records(numbered(json_list(whole.get("questions"), path)), make)


SET = DataSet(
    name="seedbench",
    title="SEED-Bench (image)",
    files=(f"{_FILE} and SEED-Bench-image/*, or {_TABLE}",),
    splits=("image",),
    scorers=("seedbench/llava", "seedbench/lmms-eval"),
    templates={"llava": LETTER, "plain": PLAIN},
    max_tokens=16,
    read=_read,
    md5={_TABLE: "68017231464752261a2526d6ca3a10c0"},
    notes="answers are read; the original ranks the options' likelihoods",
)
