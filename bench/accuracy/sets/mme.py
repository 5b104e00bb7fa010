"""MME: fourteen sub-tasks of yes and no, two questions about each image; the official layout, or VLMEvalKit's table.

The official layout has a folder a sub-task, and in `eval_tool/Your_Results` a text file a sub-task whose lines hold
image, question and right answer, with tabs between.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgevlm.bench.accuracy.items import Record, Skipped
from edgevlm.bench.accuracy.reading import BadRowError, Fields, Folder, records
from edgevlm.bench.accuracy.sets.base import PLAIN, DataSet, by_type, groups
from edgevlm.bench.accuracy.sets.kit import read_table
from edgevlm.bench.job import Prediction
from edgevlm.bench.report import Figure

_TABLE = "MME.tsv"
PERCEPTION = (
    *("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR"),
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
_ENDING = "Please answer yes or no."
_PLACES = ("{0}", "{0}/images", "MME_Benchmark_release_version/{0}", "MME_Benchmark_release_version/{0}/images")


def _read(folder: Folder, _split: str) -> list[Record | Skipped]:
    table = folder.find(_TABLE)
    if table is not None:
        return read_table(table, lambda record, _: _finished(record))
    found: list[Record | Skipped] = []
    for task in (*PERCEPTION, *COGNITION):
        path = folder.file(f"eval_tool/Your_Results/{task}.txt", f"Your_Results/{task}.txt", f"{task}.txt")
        found += _lines(folder, task, path)
    return found


def _lines(folder: Folder, task: str, path: Path) -> list[Record | Skipped]:
    def make(row: Fields) -> Record:
        try:
            cells = row["line"].decode("utf-8").rstrip("\r\n").split("\t")
        except UnicodeDecodeError:
            raise BadRowError("it is not UTF-8") from None
        if len(cells) < 3 or cells[2].strip().lower() not in ("yes", "no"):
            raise BadRowError("it is not image, question, and yes or no")
        places = [place.format(task) for place in _PLACES]
        record = Record(
            id=f"{task}/{cells[0]}/{cells[1]}",
            image_id=f"{task}/{cells[0]}",
            question=cells[1],
            answers=(cells[2].strip(),),
            pictures=(folder.picture(cells[0], *places),),
            type=task,
        )
        return _finished(record)

    lines = path.read_bytes().splitlines()
    return records(((f"{path.name} line {n}", {"line": line}) for n, line in enumerate(lines, 1) if line.strip()), make)


def _finished(record: Record) -> Record:
    """Without the ending of its question, which the template puts in its own words; pairs are of one image."""
    question = record.question.strip().removesuffix(_ENDING).rstrip()
    return Record(**{**vars(record), "question": question, "group": f"{record.type}/{record.image_id}"})


def figures(predictions: Sequence[Prediction], _scorer: str) -> list[Figure]:
    """Each sub-task's accuracy and accuracy+ (both questions of an image right) in percent, and their sums."""
    scores = {}
    for task, answers in by_type(predictions).items():
        pairs = groups(answers).values()
        right = sum(p.correct for p in answers) / len(answers)
        plus = sum(all(p.correct for p in pair) for pair in pairs) / len(pairs)
        scores[task] = 100 * (right + plus)
    found = [Figure(name=task, value=score, out_of=200) for task, score in scores.items()]
    for name, tasks in (("perception", PERCEPTION), ("cognition", COGNITION)):
        known = [scores[task] for task in tasks if task in scores]
        if known:
            found.append(Figure(name=name, value=sum(known), out_of=200 * len(known)))
    return found


SET = DataSet(
    name="mme",
    title="MME",
    files=("eval_tool/Your_Results/*.txt (image, question, answer) and a folder of images a sub-task, or " + _TABLE,),
    splits=("test",),
    scorers=("mme/official", "mme/lmms-eval"),
    templates={
        "llava": "{question}\nAnswer the question using a single word or phrase.",
        "official": "{question} Please answer yes or no.",
        "plain": PLAIN,
    },
    max_tokens=16,
    read=_read,
    counts={"test": 2_374},
    md5={_TABLE: "b36b43c3f09801f5d368627fb92187c3"},
    figures=figures,
)
