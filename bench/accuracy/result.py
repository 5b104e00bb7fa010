"""The accuracy part of a row: answers scored, paired with the baseline's, and written beside the report."""

from __future__ import annotations

from pathlib import Path

from edgevlm.atomic import write_text
from edgevlm.bench.accuracy.scoring import compare, same_items, score, score_types
from edgevlm.bench.job import AccuracyPlan, Prediction
from edgevlm.bench.journal import Answers
from edgevlm.bench.plan import Work
from edgevlm.bench.predictions import PREDICTIONS, file_name, store
from edgevlm.bench.report import Accuracy, Settings
from edgevlm.bench.tasks import find_task

_NAMED = 100
UNSCORED = "there are no right answers here: a judge scores the file that is written"


def accuracy_of(
    work: Work, answered: Answers, settings: Settings, answers: dict[str, list[Prediction]], out: Path
) -> Accuracy:
    """Score the answers, pair them with the baseline's, and write them beside the report.

    Args:
        work: what was measured.
        answered: its answers, at least one.
        settings: of the report.
        answers: of the works before, by name.
        out: folder of the report.
    """
    asked = work.job.accuracy
    assert asked is not None, "only what was asked has answers"
    task = find_task(asked.task, asked.data, asked.images, asked.scorer, asked.template)
    scored = task.scorer is not None and any(prediction.answer for prediction in answered.predictions)
    ours = task.units(answered.predictions) if scored else []
    theirs = task.units(answers.get(work.baseline, [])) if scored else []
    control = task.units(answered.control) if scored else []
    both, baseline = same_items(ours, theirs)
    reason = work.reason
    if not scored:
        reason = UNSCORED
    elif work.baseline and not both:
        reason = f"{work.baseline} failed"
    file = out / PREDICTIONS / f"{file_name(work.name)}.jsonl"
    return Accuracy(
        task=asked.task,
        scorer=f"{task.scorer.id}: {task.scorer.rule}" if task.scorer is not None and scored else "none",
        n=len(answered.predictions),
        images=len({prediction.image_id for prediction in answered.predictions}),
        overall=score(ours),
        control=score(control) if control else None,
        types=score_types(task, asked.split, ours, baseline, control),
        paired=compare(both, baseline, work.baseline, settings.margin, settings.seed) if both else None,
        unpaired_reason="" if both else reason,
        predictions_file=file.relative_to(out).as_posix(),
        predictions_sha256=store(file, answered.predictions),
        split=asked.split,
        template=task.template,
        data_sha256=asked.data_sha256,
        total=task.total(asked.split),
        figures=task.figures(answered.predictions, task.scorer.id) if task.scorer is not None and scored else [],
        skipped=len(answered.skipped),
        skipped_items=answered.skipped[:_NAMED],
        submission_file=_submission(work, asked, answered.predictions, out),
    )


def _submission(work: Work, asked: AccuracyPlan, predictions: list[Prediction], out: Path) -> str:
    """Write the file that a judge or a server takes; its name beside the report, or nothing."""
    submission = find_task(asked.task, asked.data, asked.images).submission
    if submission is None:
        return ""
    file = out / PREDICTIONS / f"{file_name(work.name)}-{submission.name}"
    write_text(file, submission.write(predictions))
    return file.relative_to(out).as_posix()
