"""ScienceQA with images: the official problems and pictures, or VLMEvalKit's tables."""

from __future__ import annotations

from edgevlm.bench.accuracy.items import Record, Skipped
from edgevlm.bench.accuracy.reading import BadRowError, Fields, Folder, json_dict, read_json, records, text, texts
from edgevlm.bench.accuracy.sets.base import LETTER, PLAIN, DataSet
from edgevlm.bench.accuracy.sets.kit import LETTERS, read_table

_TABLES = {"test": "ScienceQA_TEST.tsv", "val": "ScienceQA_VAL.tsv"}


def _read(folder: Folder, split: str) -> list[Record | Skipped]:
    path = folder.file("problems.json", _TABLES[split])
    if path.suffix == ".tsv":
        return read_table(path)
    splits = json_dict(read_json(folder.file("pid_splits.json")), path)
    wanted = splits.get(split)
    if not isinstance(wanted, list):
        wanted = []
    problems = json_dict(read_json(path), path)
    rows = (
        (f"problem {pid}", {**problems[pid], "pid": pid} if isinstance(problems.get(pid), dict) else None)
        for pid in map(str, wanted)
    )

    def make(row: Fields) -> Record | None:
        if row.get("image") is None:
            return None
        choices, right = texts(row, "choices"), row.get("answer")
        if isinstance(right, bool) or not isinstance(right, int) or not 0 <= right < min(len(choices), len(LETTERS)):
            raise BadRowError("answer is not the number of an option")
        pid = text(row, "pid")
        return Record(
            id=pid,
            image_id=pid,
            question=text(row, "question"),
            answers=(LETTERS[right],),
            pictures=(folder.picture(f"{pid}/{text(row, 'image')}", f"images/{split}", split),),
            type=str(row.get("subject") or "all"),
            choices=choices,
            hint=str(row.get("hint") or ""),
        )

    return records(rows, make)


SET = DataSet(
    name="scienceqa",
    title="ScienceQA (image)",
    files=("problems.json, pid_splits.json and images/test/<id>/image.png, or ScienceQA_TEST.tsv",),
    splits=("test", "val"),
    scorers=("scienceqa/llava", "scienceqa/lmms-eval"),
    templates={
        "lmms-eval": "{context}{question}{options}\nAnswer with the option's letter from the given choices directly.",
        "llava": LETTER,
        "plain": PLAIN,
    },
    max_tokens=16,
    read=_read,
    counts={"test": 2_017},
    md5={_TABLES["test"]: "e42e9e00f9c59a80d8a5db35bc32b71f", _TABLES["val"]: "96320d05e142e585e7204e72affd29f3"},
)
