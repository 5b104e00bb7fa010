"""Accuracy of one model: asking the items (in the worker) and scoring them, paired with a baseline (in the parent)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from edgevlm.bench.images import grey_noise
from edgevlm.bench.job import AccuracyPlan, Prediction
from edgevlm.bench.pairs import (
    EXACT_BELOW,
    Interval,
    Proportion,
    delta_interval,
    mcnemar_exact,
    mcnemar_midp,
    smallest_detectable_drop,
    wilson,
)
from edgevlm.bench.report import Paired, TypeScore, Verdict
from edgevlm.bench.subject import Subject, check
from edgevlm.bench.tasks import Task, find_task, normalised
from edgevlm.errors import EdgeVLMError

#: Assumed share of flips for the smallest detectable drop where fewer were seen.
MIN_DISCORDANT = 0.02


def answer_items(subject: Subject, plan: AccuracyPlan, report: Callable[[bool, Prediction], None]) -> None:
    """Ask every item and report `(control, prediction)`; questions about one image may share its encoding.

    Raises:
        EngineError: an answer that cannot be true.
    """
    task = find_task(plan.task)
    for control in (False, True) if plan.control else (False,):
        noise: np.ndarray | None = None
        seen = ""
        images = 0
        for item in task.items(plan.split, plan.n, plan.seed):
            if control and item.image_id != seen:
                noise = grey_noise(plan.seed, images, *item.image.shape[:2])
                images += 1
                seen = item.image_id
            image = item.image if noise is None else noise
            reply = subject.answer(image, item.question, max_tokens=plan.max_tokens, to_the_end=False, reuse=True)
            check(reply, 0, plan.max_tokens)
            prediction = Prediction(
                id=item.id,
                image_id=item.image_id,
                type=item.type,
                question=item.question,
                answer=item.answer,
                predicted=reply.text,
                token_ids=list(reply.token_ids),
                correct=task.right(reply.text, item.answer),
            )
            report(control, prediction)


def score(predictions: Sequence[Prediction]) -> Proportion:
    """Share of right answers with its Wilson interval."""
    return wilson(sum(prediction.correct for prediction in predictions), len(predictions))


def score_types(
    task: Task, predictions: Sequence[Prediction], baseline: Sequence[Prediction], control: Sequence[Prediction]
) -> list[TypeScore]:
    """One score a question type, in the order in which the types first appear."""
    types = list(dict.fromkeys(prediction.type for prediction in predictions))

    def of(items: Sequence[Prediction], name: str) -> Proportion:
        return score([prediction for prediction in items if prediction.type == name])

    return [
        TypeScore(
            type=name,
            chance=task.chance(name),
            accuracy=of(predictions, name),
            baseline=of(baseline, name) if baseline else None,
            control=of(control, name) if control else None,
        )
        for name in types
    ]


def compare(
    predictions: Sequence[Prediction], baseline: Sequence[Prediction], name: str, margin: float, seed: int
) -> Paired:
    """The paired comparison with the uncompressed model.

    Args:
        predictions: of the compressed model.
        baseline: of the uncompressed one, the same items in the same order.
        name: of the baseline.
        margin: the drop that counts as harmless, e.g. 0.02.
        seed: of the bootstrap.

    Raises:
        EdgeVLMError: the items differ.
    """
    if [(p.id, p.question, p.answer) for p in predictions] != [(p.id, p.question, p.answer) for p in baseline]:
        raise EdgeVLMError(
            "the two models answered different items", name, "remove the predictions folder and run again"
        )
    pairs = list(zip(predictions, baseline, strict=True))
    lost = sum(theirs.correct and not ours.correct for ours, theirs in pairs)
    gained = sum(ours.correct and not theirs.correct for ours, theirs in pairs)
    exact = lost + gained < EXACT_BELOW
    delta = delta_interval(
        [p.correct for p in predictions], [p.correct for p in baseline], [p.image_id for p in predictions], seed
    )
    discordant = max(MIN_DISCORDANT, (lost + gained) / len(pairs))
    return Paired(
        baseline=name,
        n=len(pairs),
        accuracy=score(baseline),
        delta=delta,
        lost=lost,
        gained=gained,
        answers_changed=sum(normalised(ours.predicted) != normalised(theirs.predicted) for ours, theirs in pairs),
        tokens_identical=sum(ours.token_ids == theirs.token_ids for ours, theirs in pairs),
        mcnemar_p=mcnemar_exact(lost, gained) if exact else mcnemar_midp(lost, gained),
        mcnemar_method="exact" if exact else "mid-p",
        margin=margin,
        verdict=verdict(delta, margin),
        smallest_detectable_drop=smallest_detectable_drop(len(pairs), discordant),
    )


def verdict(delta: Interval, margin: float) -> Verdict:
    """Whether the interval of the difference shows a harmless loss, a harmful one, or neither."""
    if delta.low > -margin:
        return "non-inferior"
    return "worse" if delta.high < -margin else "undecided"
