"""Rules that read yes or no: POPE, MME, and NaturalBench, whose other half asks for A or B.

The same words are read differently: POPE's own script takes "NO" and "Cannot tell" for a yes, lmms-eval takes "Yes."
for wrong, VLMEvalKit takes an answer with both words, or neither, for unknown.
"""

from __future__ import annotations

import re

from edgevlm.bench.accuracy.scorers.base import Gold, Scorer

_NOT_WORDS = re.compile(r"[^\w\s]")


def pope_official(predicted: str, _: Gold) -> str:
    """Up to the first full stop, without commas: no if a word is `No`, `no` or `not`, else yes."""
    words = predicted.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"} & set(words) else "yes"


def bare(predicted: str, _: Gold) -> str:
    """Lower case, stripped."""
    return predicted.lower().strip()


def one_of_both(predicted: str, _: Gold) -> str:
    """The one of the words yes and no that is there, or unknown."""
    words = set(_NOT_WORDS.sub(" ", predicted.lower()).split())
    if ("yes" in words) == ("no" in words):
        return "unknown"
    return "yes" if "yes" in words else "no"


def mme_official(predicted: str, _: Gold) -> str:
    """Yes or no alone, or within the first four characters; else other."""
    return _within_four(predicted.lower())


def mme_lmms(predicted: str, _: Gold) -> str:
    """The same once stripped and without full stops."""
    return _within_four(predicted.lower().strip().replace(".", ""))


def _within_four(answer: str) -> str:
    if answer in ("yes", "no"):
        return answer
    start = answer[:4]
    return "yes" if "yes" in start else "no" if "no" in start else "other"


def first_word(predicted: str, gold: Gold) -> str:
    """Which of the two words (yes and no, or A and B where there are options) comes first, in any case."""
    words = ("A", "B") if gold.choices else ("yes", "no")
    found = {word: re.search(rf"\b{word}\b", predicted, re.IGNORECASE) for word in words}
    places = {word: match.start() for word, match in found.items() if match}
    return min(places, key=places.__getitem__) if places else "none"


def _same(parsed: str, gold: Gold) -> float:
    return float(parsed.lower() == gold.answers[0].strip().lower())


SCORERS = (
    Scorer(
        "pope/official",
        'a word "No", "no" or "not" before the first full stop is no, all else yes',
        pope_official,
        _same,
    ),
    Scorer("pope/lmms-eval", "exactly yes or no, in any case; anything else is wrong", bare, _same),
    Scorer("pope/vlmevalkit", "the word yes or no; both or neither is unknown, and wrong", one_of_both, _same),
    Scorer("mme/official", "yes or no alone or within the first four characters", mme_official, _same),
    Scorer("mme/lmms-eval", "the same after stripping, without full stops", mme_lmms, _same),
    Scorer("naturalbench/official", "the first of yes and no, or of A and B, as a word in any case", first_word, _same),
)
