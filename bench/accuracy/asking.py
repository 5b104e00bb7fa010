"""Puts the items of a task to a model, in the worker, and reports each answer as it is given.

What was answered before an interruption is not asked again; a picture that cannot be opened, or a prompt that the model
cannot take, is reported with its reason and the others go on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from edgevlm.bench.accuracy.items import Item, Pixels, Skipped
from edgevlm.bench.accuracy.scorers.base import Gold, Scorer, as_said
from edgevlm.bench.images import grey_noise
from edgevlm.bench.job import AccuracyPlan, Prediction
from edgevlm.bench.report import SkippedItem
from edgevlm.bench.subject import Reply, Subject, check
from edgevlm.bench.tasks import find_task
from edgevlm.errors import InputError

Tell: TypeAlias = Callable[[bool, "Prediction | SkippedItem"], None]

_MAX_REASON = 200
#: Credit from which an answer counts as right among those with partial credit.
HALF = 0.5


def answer_items(subject: Subject, plan: AccuracyPlan, tell: Tell, asked: int = 0, asked_control: int = 0) -> None:
    """Ask every item and `tell(control, answer or skip)`; questions about one image may share its encoding.

    Args:
        subject: the model.
        plan: which items.
        tell: hears of each.
        asked: items from the front that are known already.
        asked_control: the same of the control.

    Raises:
        EngineError: an answer that cannot be true.
    """
    task = find_task(plan.task, plan.data, plan.images, plan.scorer, plan.template)
    for control in (False, True) if plan.control else (False,):
        known = asked_control if control else asked
        seen, images = "", -1
        for index, item in enumerate(task.items(plan.split, plan.n, plan.seed)):
            if isinstance(item, Skipped):
                if index >= known:
                    tell(control, _skipped(item.id, item.reason))
                continue
            if item.image_id != seen:
                seen, images = item.image_id, images + 1
            if index < known:
                continue
            try:
                pictures = item.open()
                if control:
                    pictures = tuple(grey_noise(plan.seed, images, *picture.shape[:2]) for picture in pictures)
                reply = subject.answer(
                    _one_or_all(pictures), item.question, max_tokens=plan.max_tokens, to_the_end=False, reuse=True
                )
            except InputError as error:
                tell(control, _skipped(item.id, error.what))
                continue
            check(reply, 0, plan.max_tokens)
            tell(control, prediction(item, reply, task.scorer))


def prediction(item: Item, reply: Reply, scorer: Scorer | None) -> Prediction:
    """The answer to `item`, scored."""
    gold = Gold(item.id, item.answers, item.choices)
    scored = scorer is not None and bool(item.answers)
    parsed = scorer.parse(reply.text, gold) if scorer is not None and scored else ""
    credit = scorer.credit(parsed, gold) if scorer is not None and scored else 0.0
    return Prediction(
        id=item.id,
        image_id=item.image_id,
        type=item.type,
        question=item.question,
        answer=item.answer,
        predicted=reply.text,
        token_ids=list(reply.token_ids),
        correct=credit >= HALF,
        score=None if credit in (0, 1) else credit,
        parsed="" if scorer is not None and scorer.parse is as_said else parsed,
        answers=list(item.answers) if len(item.answers) > 1 else [],
        choices=list(item.choices),
        group=item.group,
        top_tokens=[token for token, _ in reply.first_tokens],
        top_logprobs=[round(value, 4) for _, value in reply.first_tokens],
    )


def _one_or_all(pictures: tuple[Pixels, ...]) -> Pixels | list[Pixels]:
    return pictures[0] if len(pictures) == 1 else list(pictures)


def _skipped(item: str, reason: str) -> SkippedItem:
    return SkippedItem(id=item[:_MAX_REASON], reason=reason[:_MAX_REASON])
