"""Answers are scored by one rule, compared item by item, and asked once more without the image for the control."""

import numpy as np
import pytest
from bench_fakes import FakeModel
from numpy.typing import NDArray

from edgevlm.bench.accuracy.asking import answer_items
from edgevlm.bench.accuracy.scorers.text import exact_match
from edgevlm.bench.accuracy.scoring import compare, verdict
from edgevlm.bench.images import grey_noise, photo_like
from edgevlm.bench.job import AccuracyPlan, Job, Prediction
from edgevlm.bench.pairs import Interval
from edgevlm.bench.report import SkippedItem
from edgevlm.errors import EdgeVLMError
from edgevlm.imageio import load_image

PLAN = AccuracyPlan(task="scenes", split="test", n=12, seed=0, max_tokens=16, control=True)


def predictions(right: list[bool], texts: list[str] | None = None) -> list[Prediction]:
    said = texts or ["red" if correct else "blue" for correct in right]
    return [
        Prediction(
            id=str(i),
            image_id=str(i // 2),
            type="colour",
            question="?",
            answer="red",
            predicted=text,
            token_ids=list(text.encode()),
            correct=correct,
        )
        for i, (correct, text) in enumerate(zip(right, said, strict=True))
    ]


@pytest.mark.parametrize("said", ["Red", " red.\n", "RED", "red ."])
def test_case_space_and_a_full_stop_do_not_matter(said: str) -> None:
    assert exact_match(said, "red")


@pytest.mark.parametrize("said", ["", "dark red", "redd", "red green", "red..", "not red"])
def test_anything_else_is_wrong(said: str) -> None:
    assert not exact_match(said, "red")


def test_control_asks_the_same_questions_of_noise() -> None:
    model = FakeModel(Job(kind="bundle", path="x", accuracy=PLAN))
    seen: list[tuple[bool, Prediction | SkippedItem]] = []
    answer_items(model, PLAN, lambda *answered: seen.append(answered))
    real = [p for control, p in seen if not control and isinstance(p, Prediction)]
    noise = [p for control, p in seen if control and isinstance(p, Prediction)]
    assert len(real) == len(noise) == PLAN.n
    assert [p.question for p in real] == [p.question for p in noise]
    assert all(p.correct for p in real)
    assert not any(p.correct for p in noise)


def test_noise_tells_nothing_and_differs_from_image_to_image() -> None:
    one, two = grey_noise(0, 0, 40, 60), grey_noise(0, 1, 40, 60)
    assert one.shape == (40, 60, 3)
    assert (one[..., 0] == one[..., 2]).all()
    assert (one != two).any()


def test_timed_images_are_photos_of_the_asked_size_and_repeatable() -> None:
    decoded: NDArray[np.uint8] = np.asarray(load_image(photo_like(1, 0, 96, 64)))
    assert decoded.shape == (64, 96, 3)
    assert decoded.std() > 20
    assert photo_like(1, 0, 96, 64) == photo_like(1, 0, 96, 64) != photo_like(1, 1, 96, 64)


def test_flips_are_counted_both_ways_and_so_is_every_other_answer() -> None:
    ours = predictions([True, False, False, True], ["red", "blue", "green", "Red."])
    theirs = predictions([True, True, False, False], ["red", "red", "blue", "blue"])
    paired = compare(ours, theirs, "fp32", 0.02, 0)
    assert (paired.lost, paired.gained, paired.answers_changed) == (1, 1, 3)
    assert paired.tokens_identical == 1
    assert paired.delta.value == 0
    assert paired.mcnemar_method == "exact"


def test_many_flips_use_midp() -> None:
    paired = compare(predictions([False] * 25), predictions([True] * 25), "fp32", 0.02, 0)
    assert paired.mcnemar_method == "mid-p"
    assert paired.verdict == "worse"


def test_answers_to_other_items_are_not_compared() -> None:
    with pytest.raises(EdgeVLMError, match="different items"):
        compare(predictions([True, True]), predictions([True]), "fp32", 0.02, 0)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (-0.019, 0.01, "non-inferior"),
        (-0.021, 0.01, "undecided"),
        (-0.05, -0.021, "worse"),
        (-0.05, -0.019, "undecided"),
    ],
)
def test_verdict_asks_the_whole_interval(low: float, high: float, expected: str) -> None:
    assert verdict(Interval(value=(low + high) / 2, low=low, high=high), 0.02) == expected
