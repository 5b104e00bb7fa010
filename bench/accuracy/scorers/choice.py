"""Rules that read the letter of an option: MMBench, ScienceQA, SEED-Bench and MMMU.

An answer in which no letter is read is wrong, except by MMMU's own rule, which then guesses. The published script
draws from a global random stream; here the guess is a function of the question's id, so that a run can be repeated.
"""

from __future__ import annotations

import hashlib
import re

from edgevlm.bench.accuracy.scorers.base import Gold, Scorer, is_first
from edgevlm.bench.accuracy.scorers.numbers import open_credit

NONE = ""
_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_MARKS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_THE_ANSWER_IS = re.compile(r"The answer is ([A-Z]).")


def vlmevalkit(predicted: str, gold: Gold) -> str:
    """The only option whose letter is a word of the answer, or else whose text is in it."""
    if any(refusal in predicted for refusal in _REFUSALS):
        return "Z"
    words = predicted.translate(_MARKS).split()
    named = [letter for letter in gold.letters if letter in words]
    if len(named) == 1:
        return named[0]
    if not named and "Z" in words:
        return "Z"
    said = predicted.lower()
    if len(said) > 2 * sum(len(choice) for choice in gold.choices):
        return NONE
    spelled = [letter for letter, choice in zip(gold.letters, gold.choices, strict=True) if choice.lower() in said]
    return spelled[0] if len(spelled) == 1 else NONE


def letter_or_prefix(predicted: str, _: Gold) -> str:
    """A letter alone, or at the start with `. ` behind it."""
    if len(predicted) == 1 and "A" <= predicted <= "Z":
        return predicted
    if len(predicted) >= 3 and "A" <= predicted[0] <= "Z" and predicted[1:3] == ". ":
        return predicted[0]
    return NONE


def scienceqa_llava(predicted: str, gold: Gold) -> str:
    """The same, or else the only match of `The answer is X.`."""
    said = predicted.strip()
    found = _THE_ANSWER_IS.findall(said)
    letter = letter_or_prefix(said, gold) or (found[0] if len(found) == 1 else NONE)
    return letter if letter in gold.letters else NONE


def exact_letter(predicted: str, _: Gold) -> str:
    """The answer, stripped."""
    return predicted.strip()


def first_character(predicted: str, _: Gold) -> str:
    """The first character of the answer, so that `A person` is A and `The answer is B` is T."""
    return predicted.strip()[:1]


def mmmu_letter(predicted: str, gold: Gold, *, lenient: bool = False) -> str:
    """The letter in brackets, else as a word, else by the option's text in a long answer; the last where several are.

    `lenient` (lmms-eval) also reads `A ` and `A.` at the end of a word.
    """
    said = predicted
    for mark in ",.!?;:'":
        said = said.strip(mark)
    said = f" {said} "
    patterns = ["({})", "{} ", "{}."] if lenient else ["({})", " {} "]
    for pattern in patterns:
        places = {letter: said.rfind(pattern.format(letter)) for letter in gold.letters}
        if any(place >= 0 for place in places.values()):
            return max(places, key=places.__getitem__)
    if len(said.split()) > 5:
        texts = zip(gold.letters, gold.choices, strict=True)
        places = {letter: said.lower().rfind(choice.lower()) for letter, choice in texts}
        if any(place >= 0 for place in places.values()):
            return max(places, key=places.__getitem__)
    return NONE


def _mmmu(lenient: bool, guess: bool) -> Scorer:
    def parse(predicted: str, gold: Gold) -> str:
        if not gold.choices:
            return predicted
        letter = mmmu_letter(predicted, gold, lenient=lenient)
        return _guess(gold) if letter == NONE and guess else letter

    def credit(parsed: str, gold: Gold) -> float:
        return is_first(parsed, gold) if gold.choices else open_credit(parsed, gold.answers)

    origin = "lmms-eval" if lenient else "official" if guess else "strict"
    ending = "a guess fixed by the question's id where none is read" if guess else "wrong where none is read"
    how = "in brackets, before a space or a full stop" if lenient else "in brackets or as a word"
    rule = f"the last letter {how}, or the option's text in a long answer; {ending}; open answers by text or number"
    return Scorer(f"mmmu/{origin}", rule, parse, credit)


def _guess(gold: Gold) -> str:
    return gold.letters[int.from_bytes(hashlib.sha256(gold.id.encode()).digest()[:8], "big") % len(gold.letters)]


SCORERS = (
    Scorer(
        "mmbench/exact", "the only letter among the words, or the only option's text; else wrong", vlmevalkit, is_first
    ),
    Scorer("scienceqa/llava", 'a letter alone, before ". ", or after "The answer is "', scienceqa_llava, is_first),
    Scorer(
        "scienceqa/lmms-eval",
        'a letter alone or before ". "',
        lambda said, gold: letter_or_prefix(said.strip(), gold),
        is_first,
    ),
    Scorer("seedbench/llava", "the letter, and nothing else", exact_letter, is_first),
    Scorer("seedbench/lmms-eval", "the first character", first_character, is_first),
    _mmmu(lenient=False, guess=True),
    _mmmu(lenient=True, guess=True),
    _mmmu(lenient=False, guess=False),
)
