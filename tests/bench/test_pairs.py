"""Intervals and tests of paired answers agree with scipy and with published vectors."""

from typing import Any

import numpy as np
import pytest
from scipy import stats as scipy_stats

from edgevlm.bench.pairs import (
    _expanded_tail,
    delta_interval,
    items_needed,
    mcnemar_exact,
    mcnemar_midp,
    smallest_detectable_drop,
    wilson,
)


@pytest.mark.parametrize(
    ("lost", "gained", "expected"), [(12, 3, 0.03516), (25, 10, 0.01667), (6, 0, 0.03125), (5, 0, 0.0625)]
)
def test_mcnemar_vectors(lost: int, gained: int, expected: float) -> None:
    assert mcnemar_exact(lost, gained) == pytest.approx(expected, abs=5e-6)
    assert mcnemar_exact(gained, lost) == mcnemar_exact(lost, gained)
    assert mcnemar_exact(lost, gained) == pytest.approx(scipy_stats.binomtest(lost, lost + gained).pvalue)


@pytest.mark.parametrize(("lost", "gained"), [(12, 3), (25, 10), (300, 260), (0, 1)])
def test_midp_counts_the_outcome_seen_half_on_each_side(lost: int, gained: int) -> None:
    n, fewer = lost + gained, min(lost, gained)
    expected = 2 * (scipy_stats.binom.cdf(fewer - 1, n, 0.5) + scipy_stats.binom.pmf(fewer, n, 0.5) / 2)
    assert mcnemar_midp(lost, gained) == pytest.approx(expected)


def test_no_flips_give_no_evidence() -> None:
    assert mcnemar_exact(0, 0) == mcnemar_midp(0, 0) == 1.0


@pytest.mark.parametrize(("correct", "n"), [(0, 10), (10, 10), (450, 500), (1, 3)])
def test_wilson_is_that_of_scipy(correct: int, n: int) -> None:
    theirs = scipy_stats.binomtest(correct, n).proportion_ci(method="wilson")
    ours = wilson(correct, n)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def _answers(items: int, images: int, seed: int) -> tuple[list[bool], list[bool], list[str]]:
    rng = np.random.default_rng(seed)
    bad_image = rng.random(images) < 0.1
    clusters = rng.integers(0, images, items)
    baseline = rng.random(items) < 0.9
    candidate = baseline & ~(bad_image[clusters] & (rng.random(items) < 0.7)) | (rng.random(items) < 0.02)
    return candidate.tolist(), baseline.tolist(), [f"image-{cluster}" for cluster in clusters]


def test_bootstrap_agrees_with_scipy_over_images() -> None:
    candidate, baseline, clusters = _answers(600, 120, 3)
    names = sorted(set(clusters))
    sums = np.zeros(len(names))
    sizes = np.zeros(len(names))
    for ours, theirs, cluster in zip(candidate, baseline, clusters, strict=True):
        sums[names.index(cluster)] += int(ours) - int(theirs)
        sizes[names.index(cluster)] += 1

    def ratio(x: Any, y: Any, axis: int = -1) -> Any:
        return x.sum(axis=axis) / y.sum(axis=axis)

    theirs_ci = scipy_stats.bootstrap(
        (sums, sizes), ratio, paired=True, vectorized=True, n_resamples=10_000, method="percentile", rng=5
    ).confidence_interval
    ours_ci = delta_interval(candidate, baseline, clusters)
    assert ours_ci.value == pytest.approx((sum(candidate) - sum(baseline)) / 600)
    assert (ours_ci.low, ours_ci.high) == pytest.approx((theirs_ci.low, theirs_ci.high), abs=0.003)


def test_questions_about_one_image_are_not_independent() -> None:
    """Five copies of each item carry no more information than one: resampling items would halve the interval."""
    candidate, baseline = [i % 7 > 0 for i in range(200)], [i % 10 > 0 for i in range(200)]
    alone = delta_interval(candidate, baseline, [str(i) for i in range(200)])
    copies = delta_interval(candidate * 5, baseline * 5, [str(i) for i in range(200)] * 5)
    assert copies.high - copies.low == pytest.approx(alone.high - alone.low, rel=0.02)


def test_a_few_items_without_a_loss_prove_little() -> None:
    clusters = [str(i) for i in range(50)]
    same = delta_interval([True] * 50, [True] * 50, clusters)
    assert (same.low, same.high) == pytest.approx((-0.0711, 0.0711), abs=1e-4)
    exact = scipy_stats.binomtest(0, 50).proportion_ci(method="exact").high
    assert same.high == pytest.approx(exact)


def test_the_seed_decides_the_interval() -> None:
    answers = _answers(300, 60, 5)
    assert delta_interval(*answers, seed=1) == delta_interval(*answers, seed=1)
    assert delta_interval(*answers, seed=1) != delta_interval(*answers, seed=2)


def test_answers_to_other_items_are_refused() -> None:
    with pytest.raises(ValueError, match="differ in length"):
        delta_interval([True], [True, False], ["a", "b"])


@pytest.mark.parametrize(
    ("discordant", "needed"),
    [(0.02, (6277, 1568, 391)), (0.03, (9417, 2353, 587)), (0.05, (15696, 3923, 979)), (0.10, (31394, 7847, 1960))],
)
def test_items_needed_is_connors_table(discordant: float, needed: tuple[int, ...]) -> None:
    assert tuple(items_needed(drop, discordant) for drop in (0.005, 0.01, 0.02)) == needed


def test_smallest_detectable_drop_inverts_the_table() -> None:
    assert smallest_detectable_drop(2353, 0.03) == pytest.approx(0.01, rel=1e-3)
    assert smallest_detectable_drop(500, 0.03) == pytest.approx(0.0217, abs=1e-4)
    assert smallest_detectable_drop(20, 0.03) is None


def test_intervals_of_clustered_differences_cover_the_truth() -> None:
    """Of 2,000 runs over 300 images with 1 to 3 questions each, of which some images fail as a whole, 93 to 97% cover.

    The truth is the difference that the whole population has: each image loses with probability 0.1, and on such an
    image each question with probability 0.5, while each other question is gained with probability 0.04.
    """
    rng = np.random.default_rng(11)
    truth = -0.1 * 0.5 + 0.9 * 0.04
    covered = 0
    for run in range(2000):
        sizes = rng.integers(1, 4, 300)
        clusters = np.repeat(np.arange(300), sizes)
        bad = (rng.random(300) < 0.1)[clusters]
        draw = rng.random(clusters.size)
        lost, gained = bad & (draw < 0.5), ~bad & (draw < 0.04)
        candidate, baseline = (~lost).astype(float), (~gained).astype(float)
        found = delta_interval(candidate.tolist(), baseline.tolist(), clusters.astype(str).tolist(), run, 400)
        covered += found.low <= truth <= found.high
    assert 0.93 <= covered / 2000 <= 0.97


@pytest.mark.parametrize("groups", [6, 20, 120, 5000])
def test_tails_are_expanded_as_students_t_says(groups: int) -> None:
    expected = scipy_stats.norm.cdf(-np.sqrt(groups / (groups - 1)) * scipy_stats.t.ppf(0.975, groups - 1))
    assert _expanded_tail(groups) == pytest.approx(expected, rel=0.1 if groups == 6 else 0.01)


@pytest.mark.parametrize(("n", "p"), [(100, 0.9), (500, 0.7), (1797, 0.95)])
def test_wilson_intervals_cover_the_truth(n: int, p: float) -> None:
    correct = np.random.default_rng(5).binomial(n, p, 2000)
    intervals = {k: wilson(int(k), n) for k in set(correct.tolist())}
    found = [intervals[k] for k in correct.tolist()]
    assert 0.93 <= np.mean([share.low <= p <= share.high for share in found]) <= 0.97  # type: ignore[operator]
