"""NaturalBench: two questions about two images, so that an answer without looking is wrong half of the time.

JSON lines with the fields of the published parquet file (Index, Image_0, Image_1, Question_0, Question_1,
Image_0_Question_0 ..., Question_Type), the images as names of files. Parquet is converted once: see docs/accuracy.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from edgevlm.bench.accuracy.items import Record, Skipped
from edgevlm.bench.accuracy.reading import BadRowError, Fields, Folder, read_lines, records, text
from edgevlm.bench.accuracy.sets.base import DataSet, groups, share
from edgevlm.bench.job import Prediction
from edgevlm.bench.report import Figure
from edgevlm.errors import InputError

_LINES = "naturalbench.jsonl"
_SUFFIXES = {
    "yes_no": " Please answer Yes or No.",
    "multiple_choice": " Please output the letter corresponding to the correct option.",
}
_PAIRS = tuple((image, question) for image in (0, 1) for question in (0, 1))


def _read(folder: Folder, _split: str) -> list[Record | Skipped]:
    if folder.find(_LINES) is None and next(folder.root.rglob("*.parquet"), None) is not None:
        raise InputError(
            "parquet files are not read here", str(folder.root), f"convert them to {_LINES}: see docs/accuracy.md"
        )

    def make(row: Fields) -> Iterator[Record]:
        kind = text(row, "Question_Type")
        if kind not in _SUFFIXES:
            raise BadRowError("Question_Type is neither yes_no nor multiple_choice")
        index = text(row, "Index")
        for image, question in _PAIRS:
            name = text(row, f"Image_{image}")
            yield Record(
                id=f"{index}-{image}-{question}",
                image_id=name,
                question=text(row, f"Question_{question}"),
                answers=(text(row, f"Image_{image}_Question_{question}").strip(),),
                pictures=(folder.picture(name, ".", "images"),),
                type=kind,
                choices=("A", "B") if kind == "multiple_choice" else (),
                ending=_SUFFIXES[kind],
                group=index,
            )

    return records(read_lines(folder.file(_LINES)), make)


def figures(predictions: Sequence[Prediction], _scorer: str) -> list[Figure]:
    """Q-Acc (both images of a question), I-Acc (both questions of an image) and G-Acc (all four) of whole groups."""
    whole = [members for members in groups(predictions).values() if len(members) == len(_PAIRS)]
    right = [{tuple(map(int, p.id.split("-")[-2:])): p.correct for p in members} for members in whole]
    by_question = [all(group[image, question] for image in (0, 1)) for group in right for question in (0, 1)]
    by_image = [all(group[image, question] for question in (0, 1)) for group in right for image in (0, 1)]
    return [
        Figure(name="Q-Acc", value=share(sum(by_question), len(by_question))),
        Figure(name="I-Acc", value=share(sum(by_image), len(by_image))),
        Figure(name="G-Acc", value=share(sum(all(group.values()) for group in right), len(right))),
    ]


SET = DataSet(
    name="naturalbench",
    title="NaturalBench",
    files=(f"{_LINES} and the pictures it names",),
    splits=("test",),
    scorers=("naturalbench/official",),
    templates={"official": "{question}{ending}", "plain": "{question}"},
    max_tokens=16,
    read=_read,
    counts={"test": 7_600},
    figures=figures,
)
