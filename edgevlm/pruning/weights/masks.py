"""Which weights of a matrix become zero, given a score for each: the lowest, by row or in groups.

In: scores `[N, C]` (N outputs, C inputs). Out: a boolean mask, true where the weight goes. Of equal scores the left
goes first. A pattern n:m leaves n of every m neighbours along the inputs, the layout that sparse tensor cores read: 2:4
is two of each aligned group of four in every row of the weight (TensorRT developer guide, structured sparsity).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor

#: Widths of a group: those that divide SparseGPT's blocks.
_GROUPS = (2, 4, 8, 16, 32)
_PATTERN = re.compile(r"(\d{1,2}):(\d{1,2})")


@dataclass(frozen=True)
class Pattern:
    """`kept` of every `group` neighbours along the inputs stay."""

    kept: int
    group: int

    def __str__(self) -> str:
        return f"{self.kept}:{self.group}"

    @property
    def sparsity(self) -> float:
        """Share of zeros."""
        return 1 - self.kept / self.group


def parse_pattern(text: str) -> Pattern | None:
    """`2:4` as a pattern; None for anything that is none. The group is a power of two up to 32."""
    match = _PATTERN.fullmatch(text)
    if match is None or int(match[2]) not in _GROUPS or not 0 < int(match[1]) < int(match[2]):
        return None
    return Pattern(int(match[1]), int(match[2]))


def lowest_in_rows(scores: Tensor, count: int) -> Tensor:
    """The lowest of each row, `count` in all; rows that give one more than others are those that lose least by it."""
    rows, columns = scores.shape
    each, more = divmod(count, rows)
    order = scores.argsort(dim=1, stable=True)
    counts = torch.full((rows, 1), each)
    if more:
        next_lowest = scores.gather(1, order[:, each : each + 1])[:, 0]
        counts[next_lowest.argsort(stable=True)[:more]] += 1
    ranks = torch.empty_like(order)
    ranks.scatter_(1, order, torch.arange(columns).expand(rows, -1))
    return ranks < counts


def lowest(scores: Tensor, count: int) -> Tensor:
    """The `count` lowest of the whole matrix."""
    mask = torch.zeros(scores.numel(), dtype=torch.bool)
    mask[scores.flatten().argsort(stable=True)[:count]] = True
    return mask.view(scores.shape)


def lowest_in_groups(scores: Tensor, pattern: Pattern) -> Tensor:
    """Of every group of neighbours the lowest, so that `pattern.kept` stay; the group divides the columns."""
    groups = scores.reshape(-1, pattern.group)
    gone = groups.argsort(dim=1, stable=True)[:, : pattern.group - pattern.kept]
    mask = torch.zeros(groups.shape, dtype=torch.bool)
    mask.scatter_(1, gone, torch.ones_like(gone, dtype=torch.bool))
    return mask.view(scores.shape)


def follows(weight: Tensor, pattern: Pattern) -> bool:
    """Whether every aligned group of every row has at most `pattern.kept` numbers that are not zero."""
    if weight.ndim != 2 or weight.shape[1] % pattern.group:
        return False
    counts = (weight != 0).view(-1, pattern.group).sum(dim=1)
    return bool((counts <= pattern.kept).all())
