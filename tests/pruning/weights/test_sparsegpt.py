"""SparseGPT and Wanda against the formulas, written out in numpy for matrices small enough to do it by brute force."""

from itertools import combinations

import numpy as np
import pytest
import torch
from linear_inputs import correlated, moments_of
from numpy.typing import NDArray

from edgevlm.calibration.statistics import inverse_factor, relative_error
from edgevlm.pruning.weights.masks import Pattern, follows
from edgevlm.pruning.weights.sparsegpt import DAMPING, sparsegpt
from edgevlm.pruning.weights.wanda import magnitude, wanda

Float64 = NDArray[np.float64]


def damped(moments: torch.Tensor) -> Float64:
    matrix = moments.double().numpy()
    return np.asarray(matrix + DAMPING * np.diag(matrix).mean() * np.eye(len(matrix)))


def obs_by_brute_force(weight: Float64, hessian: Float64, zeros: int, block: int) -> Float64:
    """Optimal brain surgeon from left to right: each column's inverse Hessian is computed anew of what is left."""
    weight, columns = weight.copy(), weight.shape[1]
    chosen = 0
    inverses = [np.linalg.inv(hessian[j:, j:]) for j in range(columns)]
    cost = np.array([inverse[0, 0] for inverse in inverses])
    for start in range(0, columns, block):
        end = min(start + block, columns)
        wanted = zeros * end // columns - chosen
        chosen += wanted
        scores = weight[:, start:end] ** 2 / cost[start:end]
        mask = np.zeros(scores.size, bool)
        mask[np.argsort(scores.ravel(), kind="stable")[:wanted]] = True
        mask = mask.reshape(scores.shape)
        for row, column in np.argwhere(mask)[np.argsort(np.argwhere(mask)[:, 1], kind="stable")]:
            j = start + column
            weight[row, j:] -= weight[row, j] / inverses[j][0, 0] * inverses[j][0]
            weight[row, j] = 0
    return weight


@pytest.mark.parametrize("block", [4, 8, 128])
def test_every_step_is_that_of_optimal_brain_surgeon(block: int) -> None:
    inputs = correlated(200, 12)
    weight = torch.randn(5, 12, generator=torch.Generator().manual_seed(1))
    moments = moments_of(inputs)
    found = sparsegpt(weight, moments, 30, block=block)
    expected = obs_by_brute_force(weight.double().numpy(), damped(moments), 30, block)
    assert int((found == 0).sum()) == 30
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_one_weight_less_is_the_best_that_least_squares_can_do() -> None:
    """With one zero to place at the leftmost column, the others are the exact solution without that channel."""
    inputs, weight = correlated(300, 6, 2), torch.ones(1, 6)
    weight[0, 0] = 1e-6
    moments = moments_of(inputs)
    found = sparsegpt(weight, moments, 1)[0].double().numpy()
    hessian, rest = damped(moments), np.arange(1, 6)
    best = np.linalg.solve(hessian[np.ix_(rest, rest)], hessian[rest] @ weight[0].double().numpy())
    assert found[0] == 0
    np.testing.assert_allclose(found[1:], best, rtol=1e-3)


def test_reconstruction_is_near_the_best_mask_of_all() -> None:
    """All 70 masks of 4 of 8 weights, each with its exact least-squares weights; greedy order costs little."""
    inputs = correlated(400, 8, 3)
    weight = torch.randn(1, 8, generator=torch.Generator().manual_seed(4))
    moments = moments_of(inputs)
    hessian, dense = damped(moments), weight[0].double().numpy()

    def error(kept: tuple[int, ...]) -> float:
        index = list(kept)
        candidate = np.zeros(8)
        candidate[index] = np.linalg.solve(hessian[np.ix_(index, index)], hessian[index] @ dense)
        return float((candidate - dense) @ hessian @ (candidate - dense))

    errors = sorted(error(kept) for kept in combinations(range(8), 4))
    difference = sparsegpt(weight, moments, 4)[0].double().numpy() - dense
    found = float(difference @ hessian @ difference)
    assert errors[0] - 1e-6 <= found < np.median(errors)


@pytest.mark.parametrize("target", [int(32 * 64 * 0.5), Pattern(2, 4), Pattern(4, 8)])
def test_errors_fall_from_magnitude_to_wanda_to_sparsegpt(target: int | Pattern) -> None:
    inputs = correlated(500, 64, 5)
    weight = torch.randn(32, 64, generator=torch.Generator().manual_seed(6))
    moments = moments_of(inputs)
    pruned = [
        magnitude(weight, target),
        wanda(weight, moments.diagonal(), target),
        sparsegpt(weight, moments, target, block=16),
    ]
    errors = [relative_error(weight - each, weight, moments) for each in pruned]
    assert errors[2] < errors[1] < errors[0]
    for each in pruned:
        assert int((each == 0).sum()) == 32 * 32
        assert not isinstance(target, Pattern) or follows(each, target)


def test_wanda_by_hand() -> None:
    """Scores 3x1, 1x10 and 2x2 in the first row, 1x1, 1x10 and 6x2 in the second: the lowest of each row goes."""
    weight = torch.tensor([[3.0, -1.0, 2.0], [-1.0, 1.0, 6.0]])
    squares = torch.tensor([1.0, 100.0, 4.0])
    assert wanda(weight, squares, 2).tolist() == [[0, -1, 2], [0, 1, 6]]
    assert wanda(weight, squares, 4).tolist() == [[0, -1, 0], [0, 0, 6]]
    assert magnitude(weight, 3).tolist() == [[3, 0, 2], [0, 0, 6]]


def test_the_factor_is_the_cholesky_factor_of_the_inverse() -> None:
    moments = moments_of(correlated(100, 10, 7))
    factor = inverse_factor(moments, DAMPING).double().numpy()
    expected = np.linalg.cholesky(np.linalg.inv(damped(moments))).T
    assert np.allclose(np.tril(factor, -1), 0)
    np.testing.assert_allclose(factor, expected, rtol=2e-3, atol=1e-4)


def test_dead_and_too_few_inputs_are_survived() -> None:
    """A channel that is always zero, and fewer samples than channels: the damping makes the Hessian invertible."""
    inputs = correlated(3, 16, 8)
    inputs[:, 5] = 0
    weight = torch.randn(4, 16, generator=torch.Generator().manual_seed(9))
    found = sparsegpt(weight, moments_of(inputs), 32)
    assert torch.isfinite(found).all()
    assert int((found == 0).sum()) == 32
    assert torch.isfinite(sparsegpt(weight, torch.zeros(16, 16), 32)).all()
