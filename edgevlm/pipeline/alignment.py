"""Match the image tokens that a bundle kept with those that the original kept.

Where two tokens are about as good as each other, rounding decides which of them a reducer keeps, and every token behind
it moves by one place. Tokens stay in order, so the two sequences are matched as text files are compared.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

#: Embeddings of a token kept by both are this alike at least, in any precision.
SAME = 0.95


def aligned(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The longest common subsequence of rows, two rows being the same at a cosine of `SAME`.

    Args:
        found: `[N, H]`.
        wanted: `[M, H]`.

    Returns:
        Indexes into `found` and into `wanted`, both ascending and of equal length.
    """
    same = _units(found) @ _units(wanted).T >= SAME
    rows, columns = same.shape
    length = np.zeros((rows + 1, columns + 1), np.int64)
    for row in range(rows - 1, -1, -1):
        matched = np.where(same[row], length[row + 1, 1:] + 1, length[row + 1, :-1])
        length[row, :-1] = np.maximum.accumulate(matched[::-1])[::-1]
    pairs = []
    row = column = 0
    while row < rows and column < columns:
        if same[row, column] and length[row, column] == length[row + 1, column + 1] + 1:
            pairs.append((row, column))
            row, column = row + 1, column + 1
        elif length[row + 1, column] >= length[row, column + 1]:
            row += 1
        else:
            column += 1
    matches = np.array(pairs, np.intp).reshape(-1, 2)
    return matches[:, 0], matches[:, 1]


def shares_going_on(
    found: Sequence[NDArray[np.int64]], wanted: Sequence[NDArray[np.int64]], image: NDArray[np.int64]
) -> list[float]:
    """Of the image tokens that the original lets go on behind each stage of its decoder, the share that go on in both.

    Args:
        found: by stage, the places that go on in the bundle, among those that entered the stage.
        wanted: those of the original.
        image: places of image tokens in the whole prompt.
    """
    shares, ours, theirs = [], found[0], wanted[0]
    for stage in range(len(wanted)):
        if stage:
            ours, theirs = ours[found[stage]], theirs[wanted[stage]]
        meant = np.intersect1d(theirs, image)
        shares.append(len(np.intersect1d(meant, ours)) / len(meant))
    return shares


def _units(rows: NDArray[np.float32]) -> NDArray[np.float64]:
    wide = rows.astype(np.float64)
    lengths: NDArray[np.float64] = np.linalg.norm(wide, axis=1, keepdims=True)
    return wide / np.maximum(lengths, 1e-30)
