"""Scores that need no update of what stays: magnitude, and Wanda (arXiv 2306.11695).

In: a weight `[N, C]` and, for Wanda, the mean squares `[C]` of its inputs. Out: the weight with zeros.
"""

from __future__ import annotations

from torch import Tensor

from edgevlm.pruning.weights.masks import Pattern, lowest, lowest_in_groups, lowest_in_rows


def magnitude(weight: Tensor, target: int | Pattern) -> Tensor:
    """Zeros where |w| is least in the whole matrix, the baseline of every method.

    Args:
        weight: `[N, C]`.
        target: how many zeros, or the pattern that they make.
    """
    scores = weight.abs()
    mask = lowest_in_groups(scores, target) if isinstance(target, Pattern) else lowest(scores, target)
    return weight.masked_fill(mask, 0)


def wanda(weight: Tensor, mean_squares: Tensor, target: int | Pattern) -> Tensor:
    """Zeros where |w_ij| ‖x_j‖₂ is least among the inputs of one output.

    Args:
        weight: `[N, C]`.
        mean_squares: `[C]`, of the inputs; their scale does not matter.
        target: how many zeros, or the pattern that they make.
    """
    scores = weight.abs() * mean_squares.sqrt()
    mask = lowest_in_groups(scores, target) if isinstance(target, Pattern) else lowest_in_rows(scores, target)
    return weight.masked_fill(mask, 0)
