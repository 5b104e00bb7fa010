"""Choices within a budget: the best of all, found by trying them all; what cannot be met says the nearest that can."""

from itertools import product
from typing import Literal

import numpy as np
import pytest

from edgevlm.errors import InputError
from edgevlm.quant.budget import Budget, check_size, least_loss, least_size, parse_budget

LOSSES = np.random.default_rng(0).gamma(0.5, 1e-3, (6, 3)) * [4, 2, 0.1]
SIZES = np.random.default_rng(1).integers(900, 1100, (6, 1)) * [4, 5, 8]


def tried(costs: np.ndarray, weights: np.ndarray, most: float) -> float:
    """The least cost of all choices within the bound."""
    rows = range(len(costs))
    totals = (
        (sum(costs[row, c] for row, c in zip(rows, choice, strict=True)), choice)
        for choice in product(range(3), repeat=len(costs))
        if sum(weights[row, c] for row, c in zip(rows, choice, strict=True)) <= most
    )
    return float(min(totals)[0])


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_no_other_choice_loses_less_in_so_many_bytes(share: float) -> None:
    most = SIZES.min(axis=1).sum() * (1 - share) + SIZES.max(axis=1).sum() * share
    chosen = least_loss(LOSSES.tolist(), SIZES.tolist(), most)
    assert sum(SIZES[row, c] for row, c in enumerate(chosen)) <= most
    assert sum(LOSSES[row, c] for row, c in enumerate(chosen)) == pytest.approx(tried(LOSSES, SIZES, most))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_no_other_choice_is_smaller_within_so_much_loss(share: float) -> None:
    most = (LOSSES.min(axis=1).sum() * (1 - share) + LOSSES.max(axis=1).sum() * share) * (1 + 1e-6)
    chosen = least_size(LOSSES.tolist(), SIZES.tolist(), most)
    assert sum(LOSSES[row, c] for row, c in enumerate(chosen)) <= most * (1 + 1e-6)
    assert sum(SIZES[row, c] for row, c in enumerate(chosen)) == pytest.approx(tried(SIZES, LOSSES, most))


@pytest.mark.parametrize("kind", ["size", "bits"])
def test_a_size_that_cannot_be_met_says_the_nearest_that_can(kind: Literal["size", "bits"]) -> None:
    sizes, others, weights = (SIZES * 1000).tolist(), 3_000_000, 60_000_000
    with pytest.raises(InputError, match="cannot be that small") as caught:
        check_size(Budget(kind, 2.0), sizes, others, weights)
    nearest = parse_budget(caught.value.hint.removeprefix("allow ").partition(", ")[0])
    least = sum(map(min, sizes))
    assert least <= check_size(nearest, sizes, others, weights) < least * 1.01


def test_a_loss_that_cannot_be_met_says_the_nearest_that_can() -> None:
    with pytest.raises(InputError, match="the best has KL") as caught:
        least_size(LOSSES.tolist(), SIZES.tolist(), 1e-9)
    nearest = float(caught.value.hint.partition("=")[2])
    assert least_size(LOSSES.tolist(), SIZES.tolist(), nearest)


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("size=300MB", Budget("size", 3e8)),
        ("size=1.5 GB", Budget("size", 1.5e9)),
        ("bits=4.5", Budget("bits", 4.5)),
        ("kl=1e-3", Budget("kl", 1e-3)),
        ("accuracy_drop=1", Budget("accuracy_drop", 1)),
    ],
)
def test_budgets_are_read(text: str, budget: Budget) -> None:
    assert parse_budget(text) == budget


@pytest.mark.parametrize("text", ["300MB", "size=", "size=-3MB", "bits=4MB", "kl=0", "speed=2", "size=3 miles"])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"budget|size="):
        parse_budget(text)
