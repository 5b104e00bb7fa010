"""Open answers of MMMU: the key parts of an answer, as texts and as numbers of two decimals.

Follows MMMU's own script. An answer is right where the text of a right one is in one of its parts, or a number equal.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_SENTENCES = re.compile(r"\.\s(?=[A-Z])|\n")
_INDICATORS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_TRIVIAL = (":", ",", ".", "!", "?", ";", "'")
_NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),
)


def open_credit(predicted: str, answers: Sequence[str]) -> float:
    """1 if the answer agrees with any of `answers`, else 0."""
    right = [value for answer in answers for value in normalised(answer)]
    parts = key_parts(predicted)
    numbers = [number for part in parts for pattern in _NUMBERS for number in pattern.findall(part)]
    for value in (value for part in (*parts, *numbers) for value in normalised(part)):
        if isinstance(value, float):
            if value in right:
                return 1.0
        elif any(isinstance(answer, str) and answer in value for answer in right):
            return 1.0
    return 0.0


def normalised(text: str) -> list[str | float]:
    """A number rounded to two decimals, or the text in lower case; one character gets a space on either side."""
    bare = text.strip()
    try:
        return [round(float(bare.replace(",", "")), 2)]
    except ValueError:
        lower = bare.lower()
        return [f" {lower}", f"{lower} "] if len(lower) == 1 else [lower]


def key_parts(predicted: str) -> list[str]:
    """What follows words such as `is` or `answer` in each sentence, as short as possible; else the whole."""
    lower = predicted.strip().strip(".").lower()
    sentences = _SENTENCES.split(lower)
    parts = []
    for index, sentence in enumerate(sentences):
        indicators = (*_INDICATORS, "=") if index == len(sentences) - 1 else _INDICATORS
        shortest = ""
        for indicator in indicators:
            if indicator in sentence:
                tail = sentence.split(indicator)[-1].strip()
                if not shortest or len(tail) < len(shortest):
                    shortest = tail
        if shortest and shortest not in _TRIVIAL:
            parts.append(shortest)
    return parts or [lower]
