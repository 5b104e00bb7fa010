"""Any questions in the lines of LLaVA's harness: {question_id, image, text[, category]}, and a right answer if there is
one, as `label`, `answer` or `answers`. Without right answers the replies are only written, in the harness's lines."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from edgevlm.bench.accuracy.items import Record, Skipped
from edgevlm.bench.accuracy.reading import Fields, Folder, read_lines, records, text, texts
from edgevlm.bench.accuracy.sets.base import PLAIN, SHORT, DataSet, Submission
from edgevlm.bench.job import Prediction

_FILE = "questions.jsonl"
_ANSWERS = ("answers", "answer", "label")


def _read(folder: Folder, _split: str) -> list[Record | Skipped]:
    def make(row: Fields) -> Record:
        image = text(row, "image")
        return Record(
            id=text(row, "question_id"),
            image_id=image,
            question=text(row, "text"),
            answers=texts(row, *_ANSWERS) if any(row.get(name) is not None for name in _ANSWERS) else (),
            pictures=(folder.picture(image, "images", "."),),
            type=str(row.get("category") or "all"),
        )

    found = records(read_lines(folder.file(_FILE)), make)
    if not any(isinstance(entry, Record) and entry.answers for entry in found):
        return found
    return [
        entry if isinstance(entry, Skipped) or entry.answers else Skipped(entry.id, "it has no right answer, others do")
        for entry in found
    ]


def submission(predictions: Sequence[Prediction]) -> str:
    """One answer a line, as LLaVA's scripts read them."""
    return "".join(
        json.dumps(
            {
                "question_id": p.id,
                "prompt": p.question,
                "text": p.predicted,
                "answer_id": hashlib.sha256(f"{p.id}\n{p.predicted}".encode()).hexdigest()[:22],
                "model_id": "edgevlm",
                "metadata": {},
            },
            ensure_ascii=False,
        )
        + "\n"
        for p in predictions
    )


SET = DataSet(
    name="llava",
    title="questions in LLaVA's lines",
    files=(f"{_FILE}: question_id, image, text, and label, answer or answers; images/*",),
    splits=("test",),
    scorers=("exact", "vqa/m4c", "chartqa/relaxed", "docvqa/official", "pope/official"),
    templates={"plain": PLAIN, "llava": SHORT},
    max_tokens=64,
    read=_read,
    submission=Submission("answers.jsonl", submission),
)
