"""Compares two runs from their predictions alone, by the rule they were scored with or by another one.

In: two JSONL files of predictions. Out: the paired comparison, and the figures of the benchmark. No model is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from edgevlm.bench.accuracy.asking import HALF
from edgevlm.bench.accuracy.scorers import SCORERS
from edgevlm.bench.accuracy.scorers.base import Gold, as_said
from edgevlm.bench.accuracy.scoring import compare, same_items, score
from edgevlm.bench.accuracy.sets import SETS
from edgevlm.bench.job import Prediction
from edgevlm.bench.pairs import Proportion
from edgevlm.bench.report import Figure, Paired
from edgevlm.errors import InputError
from edgevlm.validation import first_problem

_MAX_LINE = 10_000_000


@dataclass(frozen=True)
class Comparison:
    """Two runs over the items that both answered.

    Attributes:
        left_out: items that only one of the two answered.
        accuracy: of the first run.
        figures: of both, where a benchmark was named.
    """

    paired: Paired
    left_out: int
    accuracy: Proportion
    figures: list[tuple[Figure, Figure]]


def read_predictions(path: Path) -> list[Prediction]:
    """The answers in a file of a report's `predictions` folder.

    Raises:
        InputError: it is no such file, or answers an item twice.
    """
    found: dict[str, Prediction] = {}
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if len(line) > _MAX_LINE:
                    raise InputError(f"line {number} is too long", str(path), "give a file of predictions")
                prediction = Prediction.model_validate_json(line)
                if prediction.id in found:
                    what = f"line {number} answers the item {prediction.id!r:.60} again"
                    raise InputError(what, str(path), "give a file of predictions")
                found[prediction.id] = prediction
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("the file cannot be read", str(path), "give a file of predictions") from error
    except ValidationError as error:
        field, problem = first_problem(error)
        raise InputError(
            f"line {number} is no prediction: {field} {problem}", str(path), "give a file of predictions"
        ) from error
    if not found:
        raise InputError("the file is empty", str(path), "give a file of predictions")
    return list(found.values())


def rescored(predictions: Sequence[Prediction], scorer_id: str) -> list[Prediction]:
    """The same answers by another rule.

    Raises:
        InputError: there is no such rule.
    """
    scorer = SCORERS.get(scorer_id)
    if scorer is None:
        raise InputError(f"unknown scorer {scorer_id!r:.40}", "--scorer", f"scorers: {', '.join(SCORERS)}")
    found = []
    for prediction in predictions:
        gold = Gold(prediction.id, tuple(prediction.answers or [prediction.answer]), tuple(prediction.choices))
        parsed = scorer.parse(prediction.predicted, gold)
        credit = scorer.credit(parsed, gold)
        found.append(
            prediction.model_copy(
                update={
                    "parsed": "" if scorer.parse is as_said else parsed,
                    "correct": credit >= HALF,
                    "score": None if credit in (0, 1) else credit,
                }
            )
        )
    return found


def compare_runs(
    ours: Sequence[Prediction],
    theirs: Sequence[Prediction],
    name: str,
    *,
    task: str = "",
    scorer: str = "",
    margin: float,
    seed: int,
) -> Comparison:
    """Pair two runs.

    Args:
        ours: answers of the one.
        theirs: answers of the baseline.
        name: of the baseline.
        task: a data set, for its figures and for what counts together.
        scorer: id of a rule to score both by; empty keeps what the runs say.
        margin: the drop that counts as harmless.
        seed: of the bootstrap.

    Raises:
        InputError: the task or the rule is unknown, or the runs share no item.
    """
    if task and task not in SETS:
        raise InputError(f"unknown data set {task!r:.40}", "--set", f"sets: {', '.join(SETS)}")
    left, right = (rescored(ours, scorer), rescored(theirs, scorer)) if scorer else (list(ours), list(theirs))
    both, baseline = same_items(left, right)
    left_out = len(left) + len(right) - 2 * len(both)
    if not both:
        raise InputError("the two runs share no item", name, "compare runs of the same task and split")
    figures: list[tuple[Figure, Figure]] = []
    if task:
        known = SETS[task]
        rule = scorer or next(iter(known.scorers), "")
        figures = list(zip(known.figures(both, rule), known.figures(baseline, rule), strict=False))
        both, baseline = known.units(both), known.units(baseline)
    return Comparison(compare(both, baseline, name, margin, seed), left_out, score(both), figures)
