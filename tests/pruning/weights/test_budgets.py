"""Budgets: the target is met exactly, no layer is above the cap, more important layers keep more."""

import numpy as np
import pytest

from edgevlm.pruning.weights.budgets import CAP, allocate, whole_zeros


@pytest.mark.parametrize("sparsity", [0.05, 0.3, 0.5, 0.8, 0.95])
@pytest.mark.parametrize("seed", range(4))
def test_the_target_is_met_and_the_cap_holds(sparsity: float, seed: int) -> None:
    generator = np.random.default_rng(seed)
    scores, sizes = generator.gamma(0.5, size=12).tolist(), generator.integers(100, 1000, 12).tolist()
    shares = allocate(scores, sizes, sparsity)
    assert np.dot(shares, sizes) / np.sum(sizes) == pytest.approx(sparsity, abs=1e-6)
    assert max(shares) <= sparsity + CAP + 1e-9
    assert min(shares) >= 0
    assert np.all(np.diff(np.array(shares)[np.argsort(scores)]) <= 1e-9)


def test_what_is_kept_is_proportional_to_the_score_between_the_limits() -> None:
    shares = allocate([1.0, 1.1, 1.2], [10, 10, 10], 0.5)
    kept = 1 - np.array(shares)
    np.testing.assert_allclose(kept / kept[0], [1, 1.1, 1.2], rtol=1e-6)


def test_what_a_limit_leaves_over_goes_to_the_others() -> None:
    """One layer holds all the importance: it is kept whole, the others go to the cap and share the rest alike."""
    shares = allocate([1.0, 0.0, 0.0], [10, 10, 10], 0.5)
    assert shares[0] == pytest.approx(0.3, abs=1e-6)
    assert shares[1:] == pytest.approx([0.6, 0.6])
    assert allocate([1.0, 0.0, 0.0, 0.0, 0.0, 0.0], [10] * 6, 0.5)[0] == pytest.approx(0, abs=1e-9)
    assert allocate([0.0, 0.0], [10, 10], 0.4) == [0.4, 0.4]


def test_whole_numbers_sum_up_to_the_target() -> None:
    sizes = [7, 5, 11, 3] * 25
    zeros = whole_zeros(sizes, [0.37] * 100)
    assert abs(sum(zeros) - 0.37 * sum(sizes)) <= 1
    assert all(abs(count - 0.37 * size) <= 1 for count, size in zip(zeros, sizes, strict=True))
