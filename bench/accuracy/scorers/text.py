"""Rules that compare texts: exact match, GQA, OCRBench, ChartQA's relaxed accuracy, and ANLS of DocVQA."""

from __future__ import annotations

import string
from collections.abc import Callable

from edgevlm.bench.accuracy.scorers.base import Gold, Scorer, as_said, is_first

#: Beyond it two texts are not compared letter by letter.
_MAX_COMPARED = 4000
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_RELAXED = 0.05


def normalised(text: str) -> str:
    """Lower case, without surrounding white space or a final full stop."""
    return text.strip().lower().removesuffix(".").rstrip()


def exact_match(predicted: str, answer: str) -> bool:
    """Whether the two are equal once normalised."""
    return normalised(predicted) == normalised(answer)


def any_exact(parsed: str, gold: Gold) -> float:
    """1 if it equals any right answer once normalised."""
    return float(any(exact_match(parsed, answer) for answer in gold.answers))


def ocrbench(parsed: str, gold: Gold) -> float:
    """1 if any right answer is in it: lower case, line ends as spaces; of HME100k in this case and without spaces."""
    if gold.id.startswith(FORMULA):
        said = parsed.strip().replace("\n", " ").replace(" ", "")
        return float(any(answer.strip().replace("\n", " ").replace(" ", "") in said for answer in gold.answers))
    said = parsed.lower().strip().replace("\n", " ")
    return float(any(answer.lower().strip().replace("\n", " ") in said for answer in gold.answers))


#: How ids of OCRBench's handwritten formulas begin.
FORMULA = "HME100k-"


def relaxed(parsed: str, gold: Gold) -> float:
    """1 if a number is within 5% of the right one, or a text equal in lower case.

    A right answer of 0 is compared as text, as in the published code.
    """
    target = gold.answers[0]
    number, right = _number(parsed), _number(target)
    if number is not None and right:
        return float(abs(number - right) / abs(right) <= _RELAXED)
    return float(parsed.lower() == target.lower())


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def edits(left: str, right: str) -> int:
    """Levenshtein's distance: insertions, deletions and substitutions."""
    before = list(range(len(right) + 1))
    for row, a in enumerate(left, 1):
        now = [row]
        for column, b in enumerate(right, 1):
            now.append(min(before[column] + 1, now[-1] + 1, before[column - 1] + (a != b)))
        before = now
    return before[-1]


def anls(clean: Callable[[str], str], *, raw_length: bool, half_counts: bool) -> Callable[[str, Gold], float]:
    """ANLS (Biten et al. 2019): the best over right answers of 1 - NL where NL, edits over length, is below one half.

    Args:
        clean: both sides before they are compared.
        raw_length: divide by the longer text as it was, not as it was cleaned.
        half_counts: NL of exactly one half gives 0.5, not 0.
    """

    def credit(parsed: str, gold: Gold) -> float:
        best = 0.0
        for answer in gold.answers:
            ours, theirs = clean(parsed), clean(answer)
            length = max(len(parsed), len(answer)) if raw_length else max(len(ours), len(theirs))
            if max(len(ours), len(theirs)) > _MAX_COMPARED:
                continue
            distance = edits(ours, theirs) / length if length else 0.0
            if distance < 0.5 or (half_counts and distance == 0.5):
                best = max(best, 1 - distance)
        return best

    return credit


def _stripped(text: str) -> str:
    return text.strip().lower()


def _one_space(text: str) -> str:
    return " ".join(text.strip().lower().split())


SCORERS = (
    Scorer("exact", "equal to a right answer (lower case, stripped, without a final full stop)", as_said, any_exact),
    Scorer(
        "gqa/llava",
        "equal to the answer, in lower case and without final full stops",
        lambda said, _: said.rstrip(".").lower(),
        is_first,
    ),
    Scorer(
        "gqa/lmms-eval",
        "equal to the answer, without case and punctuation",
        lambda said, _: said.translate(_NO_PUNCTUATION).lower(),
        lambda parsed, gold: float(parsed == gold.answers[0].translate(_NO_PUNCTUATION).lower()),
    ),
    Scorer("ocrbench/official", "a right answer is part of the reply", as_said, ocrbench),
    Scorer("chartqa/relaxed", "numbers within 5%, texts equal in lower case", as_said, relaxed),
    Scorer(
        "docvqa/official",
        "ANLS of stripped texts, below one half 0",
        as_said,
        anls(_stripped, raw_length=False, half_counts=False),
    ),
    Scorer("docvqa/m4c", "the same, but one half counts", as_said, anls(_stripped, raw_length=False, half_counts=True)),
    Scorer(
        "docvqa/lmms-eval",
        "ANLS over the length of raw texts, one half counts",
        as_said,
        anls(_one_space, raw_length=True, half_counts=True),
    ),
)
