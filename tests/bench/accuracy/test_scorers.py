"""Every scorer gives the credit that was worked out by hand from its specification, its published quirks included."""

import re

import pytest
from scipy import stats as scipy_stats

from edgevlm.bench.accuracy.scorers import SCORERS
from edgevlm.bench.accuracy.scorers.base import Gold
from edgevlm.bench.accuracy.scorers.choice import mmmu_letter
from edgevlm.bench.accuracy.scorers.numbers import key_parts, normalised
from edgevlm.bench.accuracy.scorers.text import edits
from edgevlm.bench.accuracy.scorers.vqa import m4c, official, soft_credit

ANIMALS = ("a cat", "a dog", "two birds", "nothing")


def credit(scorer: str, predicted: str, *answers: str, choices: tuple[str, ...] = (), id_: str = "1") -> float:
    gold = Gold(id_, answers, choices)
    rule = SCORERS[scorer]
    return rule.credit(rule.parse(predicted, gold), gold)


@pytest.mark.parametrize(("k", "expected"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_vqa_credit_of_k_among_ten(k: int, expected: float) -> None:
    assert soft_credit("red", ["red"] * k + ["blue"] * (10 - k)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Two dogs", "2 dogs"),
        ("none", "0"),
        ("isnt", "isn't"),
        ("it's", "it s"),  # the apostrophe is among its marks
        ("1,000", "1000"),  # a comma between digits: marks go without a space
        ("red/blue", "red blue"),
        ("red, blue", "red blue"),
        ("black-white", "black-white"),  # the hyphen is not among its marks
        ("e.g. this.", "eg this"),
        ("4.5", "4.5"),
        ("sports. 3", "sports 3"),
        ("4.", "4"),
        ("Dont!", "dont!"),
    ],
)
def test_official_normalisation(text: str, expected: str) -> None:
    assert official(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It's", "it 's"),
        ("1,000", "1000"),
        ("what?", "what"),
        ("black-white", "black white"),
        ("{stop}!", "stop"),
        ("Dont", "don't"),
        ("somebody'd", "somebodyd"),
        ("yall'd've", "y'all'd've"),
        ("line\nend", "line end"),
    ],
)
def test_m4c_normalisation(text: str, expected: str) -> None:
    assert m4c(text) == expected


def test_at_most_32_full_stops_are_removed() -> None:
    """Upstream passes re.UNICODE where a count belongs."""
    assert int(re.UNICODE) == 32
    assert official("." * 40) == "." * 8


def test_official_touches_nothing_where_all_ten_agree() -> None:
    assert credit("vqa/official", "Yes", *["Yes"] * 10) == 1
    assert credit("vqa/official", "yes", *["Yes"] * 10) == 0
    assert credit("vqa/official", "the cat", *["cat"] * 10) == 0
    assert credit("vqa/m4c", "the Cat", *["cat"] * 10) == 1
    mixed = ["cat"] * 9 + ["dog"]
    assert credit("vqa/official", "The cat!", *mixed) == 0  # "!" is none of its marks
    assert credit("vqa/m4c", "The cat!", *mixed) == 1
    assert credit("vqa/official", "The cat", *mixed) == 1


def test_lavis_normalises_replies_more_than_answers() -> None:
    assert credit("vqa/lavis", "Two", *["two"] * 9, "2") == pytest.approx(0.3)
    assert credit("vqa/lavis", "two", *["two"] * 10) == 0
    assert credit("vqa/lavis", "The Cat!", *["cat"] * 9, "dog!") == 1
    assert credit("vqa/lavis", "cat", *["the cat"] * 9, "cat") == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("said", "official_", "lmms", "kit"),
    [
        ("Yes", "yes", "yes", "yes"),
        ("yes.", "yes", "yes.", "yes"),
        ("No, there is none.", "no", "no, there is none.", "no"),
        ("NO", "yes", "no", "no"),
        ("Cannot tell", "yes", "cannot tell", "unknown"),
        ("There is not. Yes", "no", "there is not. yes", "yes"),
        ("yes and no", "no", "yes and no", "unknown"),
        ("nothing", "yes", "nothing", "unknown"),
        ("", "yes", "", "unknown"),
    ],
)
def test_pope_reads_differ_by_parser(said: str, official_: str, lmms: str, kit: str) -> None:
    parsed = [
        SCORERS[f"pope/{name}"].parse(said, Gold("1", ("no",))) for name in ("official", "lmms-eval", "vlmevalkit")
    ]
    assert parsed == [official_, lmms, kit]
    assert credit("pope/official", said, "no") == float(official_ == "no")
    assert credit("pope/lmms-eval", said, "no") == float(lmms == "no")


@pytest.mark.parametrize(
    ("said", "official_", "lmms"),
    [
        ("Yes", "yes", "yes"),
        ("no.", "no", "no"),
        (" yes", "yes", "yes"),
        ("  ..yes", "other", "yes"),
        ("The answer is no", "other", "other"),
        ("Nope", "no", "no"),
        ("It is yes", "other", "other"),
    ],
)
def test_mme_looks_at_four_characters(said: str, official_: str, lmms: str) -> None:
    gold = Gold("1", ("Yes",))
    assert SCORERS["mme/official"].parse(said, gold) == official_
    assert SCORERS["mme/lmms-eval"].parse(said, gold) == lmms
    assert credit("mme/official", "YES", "Yes") == 1


@pytest.mark.parametrize(
    ("said", "right", "expected"),
    [("Yes, not no", "Yes", 1), ("no yes", "Yes", 0), ("yesterday", "Yes", 0), ("I say NO", "No", 1), ("", "No", 0)],
)
def test_naturalbench_takes_the_first_word(said: str, right: str, expected: float) -> None:
    assert credit("naturalbench/official", said, right) == expected


def test_naturalbench_letters() -> None:
    assert credit("naturalbench/official", "B", "B", choices=("A", "B")) == 1
    assert credit("naturalbench/official", "It is a B", "A", choices=("A", "B")) == 1  # "a" counts, in any case
    assert credit("naturalbench/official", "Yes", "A", choices=("A", "B")) == 0


@pytest.mark.parametrize(
    ("said", "letter"),
    [
        ("B", "B"),
        ("(B).", "B"),
        ("The answer is B", "B"),
        ("A or B", ""),
        ("it is a dog", "B"),
        ("a cat and a dog", ""),
        ("E", ""),
        ("Cannot determine the answer", "Z"),
        ("Z", "Z"),
        ("b", ""),
        ("a dog " * 20, ""),  # longer than twice all options: texts are not looked for
    ],
)
def test_mmbench_option_rules(said: str, letter: str) -> None:
    gold = Gold("1", ("B",), ANIMALS)
    assert SCORERS["mmbench/exact"].parse(said, gold) == letter
    assert credit("mmbench/exact", said, "B", choices=ANIMALS) == float(letter == "B")


@pytest.mark.parametrize(
    ("said", "llava", "lmms"),
    [
        ("B", "B", "B"),
        ("B. a dog", "B", "B"),
        ("B) a dog", "", ""),
        ("The answer is B.", "B", ""),
        ("The answer is B. The answer is C.", "", ""),
        ("E", "", "E"),
    ],
)
def test_scienceqa_prefixes(said: str, llava: str, lmms: str) -> None:
    gold = Gold("1", ("B",), ANIMALS)
    assert SCORERS["scienceqa/llava"].parse(said, gold) == llava
    assert SCORERS["scienceqa/lmms-eval"].parse(said, gold) == lmms


def test_seedbench_first_character_and_exact_letter() -> None:
    assert credit("seedbench/lmms-eval", "A person", "A") == 1
    assert credit("seedbench/lmms-eval", "The answer is B", "B") == 0
    assert credit("seedbench/llava", "A person", "A") == 0
    assert credit("seedbench/llava", " A\n", "A") == 1


@pytest.mark.parametrize(
    ("said", "letter"),
    [
        ("B", "B"),
        ("(A) no, (C)", "C"),  # the last of several
        ("B A", "A"),
        ("(B) or A", "B"),  # brackets before words
        ("Answer: B.", "B"),
        ("I think that it shows a dog here", "B"),
        ("it shows a dog", ""),  # five words or fewer: options' texts are not looked for
        ("dogs", ""),
    ],
)
def test_mmmu_letters(said: str, letter: str) -> None:
    assert mmmu_letter(said, Gold("1", ("B",), ANIMALS)) == letter


def test_mmmu_lenient_reads_a_letter_at_the_end_of_a_word() -> None:
    gold = Gold("1", ("B",), ANIMALS)
    assert mmmu_letter("optionB now", gold) == ""
    assert mmmu_letter("optionB now", gold, lenient=True) == "B"


def test_mmmu_guess_is_fixed_by_the_question_and_uniform() -> None:
    rule = SCORERS["mmmu/official"]
    guesses = [rule.parse("no idea", Gold(str(i), ("A",), ANIMALS)) for i in range(400)]
    assert guesses == [rule.parse("no idea", Gold(str(i), ("A",), ANIMALS)) for i in range(400)]
    assert scipy_stats.chisquare([guesses.count(letter) for letter in "ABCD"]).pvalue > 0.01
    assert credit("mmmu/strict", "no idea", "A", choices=ANIMALS) == 0


def test_mmmu_open_answers() -> None:
    assert normalised("1,234.567") == [1234.57]
    assert normalised("A") == [" a", "a "]
    assert key_parts("We add. So the result is 12.5") == ["12.5"]
    assert key_parts("x = 7") == ["7"]
    assert credit("mmmu/official", "The final answer is 12.50", "12.5") == 1
    assert credit("mmmu/official", "about 12.51", "12.5") == 0
    assert credit("mmmu/official", "it is the Mitral valve", "mitral valve", "bicuspid valve") == 1
    assert credit("mmmu/official", "24/7", "24", "7.00") == 1
    assert credit("mmmu/official", "-3e2", "-300") == 1


def test_ocrbench_substring_and_formulas() -> None:
    assert credit("ocrbench/official", "It says\nSTOP here", "stop here") == 1
    assert credit("ocrbench/official", "st op", "stop") == 0
    assert credit("ocrbench/official", "x ^ 2", "x^2", id_="HME100k-3") == 1
    assert credit("ocrbench/official", "X^2", "x^2", id_="HME100k-3") == 0


@pytest.mark.parametrize(
    ("said", "right", "expected"),
    [
        ("105", "100", 1),
        ("105.1", "100", 0),
        ("95", "100", 1),
        ("50%", "0.5", 1),
        ("0.5", "50%", 1),
        ("yes", "Yes", 1),
        ("0.0", "0", 0),  # a right answer of 0 is compared as text
        ("0", "0", 1),
        ("nan", "100", 0),
        ("1,000", "1000", 0),
    ],
)
def test_chartqa_relaxed(said: str, right: str, expected: float) -> None:
    assert credit("chartqa/relaxed", said, right) == expected


def test_docvqa_anls_by_three_rules() -> None:
    """kitten to sitting: 3 edits over 7 letters."""
    assert edits("kitten", "sitting") == 3
    for name in ("official", "m4c", "lmms-eval"):
        assert credit(f"docvqa/{name}", "Kitten", "sitting", "dog") == pytest.approx(4 / 7)
        assert credit(f"docvqa/{name}", "abcd", "wxyz") == 0
        assert credit(f"docvqa/{name}", "", "x") == 0
    assert [credit(f"docvqa/{name}", "ab", "ax") for name in ("official", "m4c", "lmms-eval")] == [0, 0.5, 0.5]
    # two edits over four letters, or over the six that stand there with their spaces
    assert credit("docvqa/m4c", "  abxy", "abcd") == 0.5
    assert credit("docvqa/lmms-eval", "  abxy", "abcd") == pytest.approx(1 - 2 / 6)


def test_gqa_case_and_punctuation() -> None:
    assert credit("gqa/llava", "Red.", "red") == 1
    assert credit("gqa/llava", "red!", "red") == 0
    assert credit("gqa/lmms-eval", "red!", "Red") == 1


def test_every_scorer_survives_any_answer() -> None:
    """Answers come from a model that may say anything."""
    for scorer in SCORERS:
        for said in ("", " ", "\0", "(" * 1000, "A" * 30_000, "1" * 500, "\u202e%", "1e999"):
            assert 0 <= credit(scorer, said, "A", "1", choices=ANIMALS) <= 1
            assert 0 <= credit(scorer, said, "no", "0") <= 1
