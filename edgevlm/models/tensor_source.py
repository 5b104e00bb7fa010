"""Where a tensor of the IR comes from in a checkpoint that stores several as one, or behind axes of length one."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from edgevlm.models.checkpoint import Checkpoint


@dataclass(frozen=True)
class Source:
    """Where a tensor of the IR comes from.

    Attributes:
        published: the tensor in the checkpoint.
        third: which of the three that it holds one after the other; None is the whole.
        leading: axes of length one to drop.
        flat: a matrix, of whose rows the published tensor has each in several axes.
    """

    published: str
    third: int | None = None
    leading: int = 0
    flat: bool = False

    def shape(self, published: tuple[int, ...]) -> tuple[int, ...]:
        """The shape in the IR, given the published one."""
        if self.flat and published:
            return (published[0], math.prod(published[1:]))
        if self.third is not None:
            return (published[0] // 3, *published[1:])
        return published[self.leading :] if published[: self.leading] == (1,) * self.leading else published

    def read(self, checkpoint: Checkpoint) -> Tensor:
        """A view of the memory-mapped tensor."""
        tensor = checkpoint.tensor(self.published)
        tensor = tensor if self.third is None else tensor.chunk(3)[self.third]
        return tensor.reshape(self.shape(checkpoint.shapes[self.published]))
