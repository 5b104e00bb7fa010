"""Kept tokens are matched in their order, whatever rounding did to the choice between equals."""

import numpy as np
import pytest

from edgevlm.pipeline.alignment import aligned, shares_going_on

ROWS = np.random.default_rng(0).normal(size=(20, 64)).astype(np.float32)


def pairs(found: list[int], wanted: list[int]) -> list[tuple[int, int]]:
    """The matches of two choices of rows, a little noise on one of them."""
    noise = np.random.default_rng(1).normal(scale=0.05, size=(len(found), 64)).astype(np.float32)
    ours, theirs = aligned(ROWS[found] + noise, ROWS[wanted])
    return list(zip(ours.tolist(), theirs.tolist(), strict=True))


@pytest.mark.parametrize(
    ("found", "wanted", "matches"),
    [
        ([1, 3, 5], [1, 3, 5], [(0, 0), (1, 1), (2, 2)]),
        ([1, 3, 5, 9], [1, 4, 5, 9], [(0, 0), (2, 2), (3, 3)]),
        ([1, 2, 5, 9], [1, 5, 8, 9], [(0, 0), (2, 1), (3, 3)]),
        ([0, 1, 2], [3, 4, 5], []),
        ([1, 2, 3, 4], [4, 1, 2, 3], [(0, 1), (1, 2), (2, 3)]),
    ],
    ids=["same", "one other", "shifted", "none", "out of order"],
)
def test_the_longest_common_subsequence(found: list[int], wanted: list[int], matches: list[tuple[int, int]]) -> None:
    assert pairs(found, wanted) == matches


def test_tokens_that_are_all_alike_are_all_matched() -> None:
    ours, theirs = aligned(np.ones((5, 3), np.float32), np.ones((5, 3), np.float32))
    assert ours.tolist() == theirs.tolist() == [0, 1, 2, 3, 4]


def test_what_goes_on_in_the_decoder_is_compared_by_places_in_the_whole_prompt() -> None:
    """Ten places, of which 2 to 7 are an image's. First 4 and then 2 of them go on; the second stage counts anew."""
    found = [np.array([0, 1, 2, 3, 4, 6, 8, 9]), np.array([0, 1, 3, 5, 6, 7])]
    wanted = [np.array([0, 1, 2, 3, 4, 5, 8, 9]), np.array([0, 1, 3, 4, 6, 7])]
    assert shares_going_on(found, wanted, np.arange(2, 8)) == [3 / 4, 1 / 2]
