"""Scores answers and compares two models item by item.

In: predictions as the workers sent them, or as files kept them. Out: the accuracy part of a report. Rules with partial
credit (VQA, ANLS) give the mean credit and its bootstrap interval over images; for flips an answer counts as right
from one half on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from edgevlm.bench.accuracy.scorers.text import normalised
from edgevlm.bench.job import Prediction
from edgevlm.bench.pairs import (
    EXACT_BELOW,
    Interval,
    Proportion,
    delta_interval,
    mcnemar_exact,
    mcnemar_midp,
    mean_interval,
    smallest_detectable_drop,
    wilson,
)
from edgevlm.bench.report import FirstToken, Paired, TypeScore, Verdict
from edgevlm.bench.tasks import Task
from edgevlm.errors import EdgeVLMError

#: Assumed share of flips for the smallest detectable drop where fewer were seen.
MIN_DISCORDANT = 0.02


def score(predictions: Sequence[Prediction]) -> Proportion:
    """Share of right answers with its Wilson interval; with partial credit the mean, with a bootstrap over images."""
    counted = wilson(sum(prediction.correct for prediction in predictions), len(predictions))
    if all(prediction.score is None for prediction in predictions):
        return counted
    credits = [prediction.credit for prediction in predictions]
    images = [prediction.image_id for prediction in predictions]
    mean = mean_interval(credits, images)
    return counted.model_copy(update={"value": mean.value, "low": max(0.0, mean.low), "high": min(1.0, mean.high)})


def score_types(
    task: Task,
    split: str,
    predictions: Sequence[Prediction],
    baseline: Sequence[Prediction],
    control: Sequence[Prediction],
) -> list[TypeScore]:
    """One score a question type, in the order in which the types first appear."""
    types = list(dict.fromkeys(prediction.type for prediction in predictions))

    def of(items: Sequence[Prediction], name: str) -> Proportion:
        return score([prediction for prediction in items if prediction.type == name])

    return [
        TypeScore(
            type=name,
            chance=task.chance(split, name),
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
        raise EdgeVLMError("the two models answered different items", name, "ask both the same items of one task")
    pairs = list(zip(predictions, baseline, strict=True))
    lost = sum(theirs.correct and not ours.correct for ours, theirs in pairs)
    gained = sum(ours.correct and not theirs.correct for ours, theirs in pairs)
    exact = lost + gained < EXACT_BELOW
    delta = delta_interval(
        [p.credit for p in predictions], [p.credit for p in baseline], [p.image_id for p in predictions], seed
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
        first_token=first_token(predictions, baseline),
    )


def first_token(predictions: Sequence[Prediction], baseline: Sequence[Prediction]) -> FirstToken | None:
    """How far the distributions of first tokens lie apart; None where any answer has no probabilities."""
    if not all(p.top_tokens and len(p.top_tokens) == len(p.top_logprobs) for p in (*predictions, *baseline)):
        return None
    pairs = list(zip(predictions, baseline, strict=True))
    divergences = [divergence(theirs, ours) for ours, theirs in pairs]
    return FirstToken(
        n=len(pairs),
        agreement=sum(ours.top_tokens[0] == theirs.top_tokens[0] for ours, theirs in pairs) / len(pairs),
        kl_mean=sum(divergences) / len(pairs),
        kl_p99=float(np.percentile(divergences, 99)),
    )


def divergence(reference: Prediction, other: Prediction) -> float:
    """Kullback-Leibler divergence in nats from `reference` to `other`, tokens that not both rank counted as one.

    Merging outcomes never raises a divergence, so it is a lower bound (data processing inequality).
    """
    p = dict(zip(reference.top_tokens, map(math.exp, reference.top_logprobs), strict=True))
    q = dict(zip(other.top_tokens, map(math.exp, other.top_logprobs), strict=True))
    shared = p.keys() & q.keys()
    pairs = [(p[token], q[token]) for token in shared]
    pairs.append((1 - sum(a for a, _ in pairs), 1 - sum(b for _, b in pairs)))
    # What rounding leaves of nothing is not a probability.
    floor = 1e-6
    return max(0.0, sum(a * math.log(a / max(b, floor)) for a, b in pairs if a > floor))


def same_items(
    predictions: Sequence[Prediction], baseline: Sequence[Prediction]
) -> tuple[list[Prediction], list[Prediction]]:
    """Those items of both that both answered, in the order of the first: each may have had to skip some."""
    known = {prediction.id: prediction for prediction in baseline}
    both = [prediction for prediction in predictions if prediction.id in known]
    return both, [known[prediction.id] for prediction in both]


def verdict(delta: Interval, margin: float) -> Verdict:
    """Whether the interval of the difference shows a harmless loss, a harmful one, or neither."""
    if delta.low > -margin:
        return "non-inferior"
    return "worse" if delta.high < -margin else "undecided"
