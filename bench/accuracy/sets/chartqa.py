"""ChartQA test: questions by people and by machine; the official files and pictures, or VLMEvalKit's table."""

from __future__ import annotations

from functools import partial

from edgevlm.bench.accuracy.items import Record, Skipped
from edgevlm.bench.accuracy.reading import Fields, Folder, json_list, read_json, records, text
from edgevlm.bench.accuracy.sets.base import PLAIN, DataSet
from edgevlm.bench.accuracy.sets.kit import read_table

_TABLE = "ChartQA_TEST.tsv"
_PARTS = ("human", "augmented")


def _read(folder: Folder, split: str) -> list[Record | Skipped]:
    table = folder.find(_TABLE)
    if table is not None:
        return read_table(table, lambda record, row: record if split in ("all", _part(row)) else None)
    found: list[Record | Skipped] = []
    for part in _PARTS if split == "all" else (split,):
        path = folder.file(f"test_{part}.json", f"test/test_{part}.json")
        rows = ((f"{part}-{number}", row) for number, row in enumerate(json_list(read_json(path), path)))
        numbered = ((place, {**row, "id": place} if isinstance(row, dict) else row) for place, row in rows)
        found += records(numbered, partial(_record, folder, part))
    return found


def _part(row: Fields) -> str:
    return str(row.get("split") or "").removeprefix("test_")


def _record(folder: Folder, part: str, row: Fields) -> Record:
    image = text(row, "imgname")
    return Record(
        id=text(row, "id"),
        image_id=image,
        question=text(row, "query"),
        answers=(text(row, "label"),),
        pictures=(folder.picture(image, "png", "test/png", "."),),
        type=part,
    )


SET = DataSet(
    name="chartqa",
    title="ChartQA test",
    files=(f"test_human.json, test_augmented.json and png/*.png, or {_TABLE}",),
    splits=("all", *_PARTS),
    scorers=("chartqa/relaxed",),
    templates={"lmms-eval": "{question}\nAnswer the question with a single word.", "plain": PLAIN},
    max_tokens=16,
    read=_read,
    counts={"all": 2_500, **dict.fromkeys(_PARTS, 1_250)},
    md5={_TABLE: "c902e0aa9be5582a7aad6dcf52734b42"},
)
