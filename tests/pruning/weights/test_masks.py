"""Which weights go: exact counts, the lowest scores, patterns in the layout of sparse tensor cores."""

import numpy as np
import pytest
import torch

from edgevlm.pruning.weights.masks import (
    Pattern,
    follows,
    lowest,
    lowest_in_groups,
    lowest_in_rows,
    parse_pattern,
)


def scores(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("count", [0, 1, 20, 24, 33, 48])
def test_rows_lose_their_lowest_and_the_count_is_exact(count: int) -> None:
    values = scores(6, 8)
    mask = lowest_in_rows(values, count)
    assert int(mask.sum()) == count
    gone = mask.sum(1)
    assert int(gone.max() - gone.min()) <= 1
    for row, chosen in zip(values.numpy(), mask.numpy(), strict=True):
        assert set(np.flatnonzero(chosen)) == set(np.argsort(row, kind="stable")[: chosen.sum()])


def test_rows_that_lose_least_give_the_odd_one() -> None:
    values = torch.tensor([[5.0, 9.0], [1.0, 9.0], [3.0, 9.0]])
    assert lowest_in_rows(values, 2).tolist() == [[False, False], [True, False], [True, False]]


def test_ties_go_from_the_left() -> None:
    assert lowest_in_rows(torch.ones(2, 4), 4).tolist() == [[True, True, False, False]] * 2
    assert lowest(torch.ones(2, 2), 3).tolist() == [[True, True], [True, False]]
    assert lowest_in_groups(torch.ones(1, 4), Pattern(2, 4)).tolist() == [[True, True, False, False]]


@pytest.mark.parametrize("pattern", [Pattern(2, 4), Pattern(1, 4), Pattern(4, 8)])
def test_every_aligned_group_keeps_its_highest(pattern: Pattern) -> None:
    values = scores(3, 16)
    kept = ~lowest_in_groups(values, pattern)
    for row, chosen in zip(values.numpy(), kept.numpy(), strict=True):
        for start in range(0, 16, pattern.group):
            group = slice(start, start + pattern.group)
            highest = np.argsort(row[group])[-pattern.kept :]
            assert set(np.flatnonzero(chosen[group])) == set(highest)


def test_a_pattern_is_checked_along_the_inputs_of_every_row() -> None:
    weight = torch.zeros(4, 8)
    weight[:, [0, 1, 4, 7]] = 1
    assert follows(weight, Pattern(2, 4))
    assert not follows(weight.T, Pattern(2, 4)), "the pattern runs along the inputs, not the outputs"
    weight[3, 5] = 1
    assert not follows(weight, Pattern(2, 4)), "one row is enough to break it"
    shifted = torch.zeros(1, 8)
    shifted[0, [2, 3, 4, 5]] = 1
    assert follows(shifted, Pattern(2, 4))
    assert not follows(shifted.roll(1), Pattern(2, 4)), "groups are aligned to multiples of four"
    assert not follows(torch.zeros(2, 6), Pattern(2, 4))


def test_patterns_are_read() -> None:
    assert parse_pattern("2:4") == Pattern(2, 4)
    assert str(Pattern(2, 4)) == "2:4"
    assert Pattern(1, 4).sparsity == 0.75
    assert [parse_pattern(text) for text in ("4:2", "0:4", "2:5", "0.5", "2:4:8", "4:4")] == [None] * 6
