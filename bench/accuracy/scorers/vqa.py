"""Soft accuracy of VQAv2 and TextVQA: ten people answered, and an answer is as right as many of them agree.

Credit is the mean over the ten ways to leave one person out of min(1, matches / 3): 0, 0.3, 0.6, 0.9 or 1 for 0, 1, 2,
3 or more matches. How answers are normalised before they are compared differs:

- `vqa/official` (GT-Vision-Lab/VQA, the script of the benchmark): nothing but line ends and tabs is touched where all
  ten answers are alike; otherwise both sides lose punctuation, articles and number words.
- `vqa/lavis` (LAVIS, and models trained with it): replies always, with the marks of m4c; of people's answers only the
  marks, where they differ, so that their articles and number words match nothing.
- `vqa/m4c` (EvalAI's processor, in Pythia, LLaVA and lmms-eval): always, and commas, question marks and case first.

Two quirks are kept, for parity: the pattern that removes full stops has a typing error (`(?!<=` for `(?<!`), so it
takes any that no digit follows, and a flag is passed where a count belongs, so it takes 32 at most. The table of
contractions has the apostrophes of m4c.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from edgevlm.bench.accuracy.scorers.base import Gold, Scorer

_OFFICIAL_MARKS = (";", ":", "/", "'", "[", "]", '"', "(", ")", "=", "+", "\\", "_", ">", "<", "@", "`", ",", "?")
_M4C_MARKS = tuple(';/[]"{}()=+\\_-><@`,?!')
_FULL_STOP = re.compile(r"(?!<=\d)(\.)(?!\d)")
_MAX_FULL_STOPS = int(re.UNICODE)
_DIGIT_COMMA = re.compile(r"\d,\d")
_ARTICLES = ("a", "an", "the")
_NUMBERS = {"none": "0"} | {
    word: str(value)
    for value, word in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    )
}
# Each expansion stands for itself without any one, or all, of its apostrophes, as the published table has them.
_TWO_APOSTROPHES = (
    "couldn't've hadn't've he'd've I'd've it'd've mightn't've she'd've shouldn't've somebody'd've someone'd've "
    "something'd've there'd've they'd've we'd've who'd've wouldn't've y'all'll you'd've"
)
_ONE_APOSTROPHE = (
    "ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's I'm "
    "I've isn't it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't should've "
    "shouldn't somebody'll somebody's someone'd someone'll someone's something'd something'll that's there'd there're "
    "there's they'd they'll they're they've 'twas wasn't we've weren't what'll what're what's what've when's where'd "
    "where's where've who'd who'll who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're "
    "you've"
)


def _contractions() -> dict[str, str]:
    table = {whole.replace("'", ""): whole for whole in _ONE_APOSTROPHE.split()}
    for whole in _TWO_APOSTROPHES.split():
        first, second, third = whole.split("'")
        table |= {f"{first}{second}'{third}": whole, f"{first}'{second}{third}": whole}
    table |= {"somebody'd": "somebodyd"}
    table |= dict.fromkeys(("ow's'at", "'ows'at", "'ow'sat"), "'ow's'at")
    table |= dict.fromkeys(("yall'd've", "y'alld've", "y'all'dve"), "y'all'd've")
    return table


_CONTRACTIONS = _contractions()


def without_marks(text: str, marks: Sequence[str]) -> str:
    """Each mark removed where a space is beside one of its kind or a comma stands between digits, else a space."""
    between_digits = _DIGIT_COMMA.search(text) is not None
    result = text
    for mark in marks:
        beside_space = f"{mark} " in text or f" {mark}" in text
        result = result.replace(mark, "" if beside_space or between_digits else " ")
    return _FULL_STOP.sub("", result, count=_MAX_FULL_STOPS)


def without_articles(text: str) -> str:
    """Lower case, number words as digits, no articles, contractions with their apostrophes."""
    words = [_NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def official(text: str) -> str:
    """The normalisation of the benchmark's own script."""
    return without_articles(without_marks(text, _OFFICIAL_MARKS))


def m4c(text: str) -> str:
    """The normalisation of EvalAI's processor."""
    word = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return without_articles(without_marks(_one_line(word), _M4C_MARKS))


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def soft_credit(predicted: str, answers: Sequence[str]) -> float:
    """The mean over leaving one answer out of min(1, matches among the others / 3)."""
    matches = sum(answer == predicted for answer in answers)
    return sum(min(1.0, (matches - (answer == predicted)) / 3) for answer in answers) / len(answers)


def _parse_official(predicted: str, gold: Gold) -> str:
    line = _one_line(predicted)
    return official(line) if _differ(gold) else line


def _credit_official(parsed: str, gold: Gold) -> float:
    lines = [_one_line(answer) for answer in gold.answers]
    return soft_credit(parsed, [official(line) for line in lines] if _differ(gold) else lines)


def _credit_lavis(parsed: str, gold: Gold) -> float:
    differ = len(set(gold.answers)) > 1
    return soft_credit(parsed, [without_marks(answer, _M4C_MARKS) if differ else answer for answer in gold.answers])


def _differ(gold: Gold) -> bool:
    return len({_one_line(answer) for answer in gold.answers}) > 1


SCORERS = (
    Scorer(
        "vqa/lavis",
        "soft accuracy over ten people, replies normalised always, answers without punctuation where they differ",
        lambda predicted, _: without_articles(without_marks(_one_line(predicted), _M4C_MARKS)),
        _credit_lavis,
    ),
    Scorer(
        "vqa/official",
        "soft accuracy over ten people, normalised as by the benchmark's script, and only where their answers differ",
        _parse_official,
        _credit_official,
    ),
    Scorer(
        "vqa/m4c",
        "soft accuracy over ten people, always normalised as by EvalAI's processor",
        lambda predicted, _: m4c(predicted),
        lambda parsed, gold: soft_credit(parsed, [m4c(answer) for answer in gold.answers]),
    ),
)
