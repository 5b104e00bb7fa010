"""OCRBench: a thousand questions about text in images; the official file and pictures, or VLMEvalKit's table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from edgevlm.bench.accuracy.items import Record, Skipped
from edgevlm.bench.accuracy.reading import Fields, Folder, json_list, numbered, read_json, records, text, texts
from edgevlm.bench.accuracy.scorers.text import FORMULA
from edgevlm.bench.accuracy.sets.base import PLAIN, DataSet
from edgevlm.bench.accuracy.sets.kit import read_table
from edgevlm.bench.job import Prediction
from edgevlm.bench.report import Figure

_FILE, _TABLE = "OCRBench.json", "OCRBench.tsv"
_FORMULAS = "Handwritten Mathematical Expression Recognition"


def _read(folder: Folder, _split: str) -> list[Record | Skipped]:
    path = folder.file(_FILE, f"OCRBench/{_FILE}", _TABLE)
    if path.suffix == ".tsv":
        return read_table(path, lambda record, _: _formula(record))

    def make(row: Fields) -> Record:
        image = text(row, "image_path")
        return Record(
            id=f"{text(row, 'dataset_name')}-{text(row, 'id')}",
            image_id=image,
            question=text(row, "question"),
            answers=texts(row, "answers"),
            pictures=(folder.picture(image, ".", "OCRBench_Images"),),
            type=text(row, "type"),
        )

    return records(numbered(json_list(read_json(path), path)), make)


def _formula(record: Record) -> Record:
    """VLMEvalKit's table has no data set's name, but all of this type are of HME100k."""
    return replace(record, id=f"{FORMULA}{record.id}") if record.type == _FORMULAS else record


def figures(predictions: Sequence[Prediction], _scorer: str) -> list[Figure]:
    """How many are right, of how many that were asked."""
    return [Figure(name="score", value=float(sum(p.correct for p in predictions)), out_of=len(predictions))]


SET = DataSet(
    name="ocrbench",
    title="OCRBench",
    files=(f"{_FILE} and OCRBench_Images/, or {_TABLE}",),
    splits=("test",),
    scorers=("ocrbench/official",),
    templates={"official": PLAIN},
    max_tokens=100,
    read=_read,
    counts={"test": 1_000},
    md5={_TABLE: "e953d98a987cc6e26ef717b61260b778"},
    figures=figures,
)
