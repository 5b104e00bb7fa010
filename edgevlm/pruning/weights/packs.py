"""Several questions about one image as one sequence, so that the image is computed once.

In: calibration samples, of which neighbours often share everything up to the end of the image. Out: batches in which
such a group is one row: the shared beginning, then what follows it in each sample, with positions that start anew and a
mask that lets each see the beginning and itself alone. The states at a sample's places are those of the sample alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from edgevlm.calibration.activations import Activations

_SHARED, _PADDING = -1, -2


@dataclass(frozen=True)
class Packed:
    """Where the samples of a batch are.

    Attributes:
        samples: their indices.
        rows: for each sample its row.
        places: for each sample the columns of its positions, int64 `[S]`.
        positions: rotary positions `[B, T]`, or `[3, B, T]` for M-RoPE.
        mask: bool `[B, 1, T, T]`.
    """

    samples: tuple[int, ...]
    rows: tuple[int, ...]
    places: tuple[Tensor, ...]
    positions: Tensor
    mask: Tensor

    @property
    def valid(self) -> Tensor:
        """Which columns are no padding, bool `[B, T]`."""
        valid = torch.zeros(self.mask.shape[0], self.mask.shape[2], dtype=torch.bool)
        for row, places in zip(self.rows, self.places, strict=True):
            valid[row, places] = True
        return valid

    def fill(self, values: Sequence[Tensor]) -> Tensor:
        """Values `[S, C]` of every sample there is, in float32, in their places: `[B, T, C]`, zero elsewhere."""
        filled = torch.zeros(self.mask.shape[0], self.mask.shape[2], values[self.samples[0]].shape[1])
        for sample, row, places in zip(self.samples, self.rows, self.places, strict=True):
            filled[row, places] = values[sample].float()
        return filled


def groups_of(activations: Activations) -> list[list[int]]:
    """Runs of neighbouring samples with the same beginning up to the end of the image."""
    groups: list[list[int]] = []
    for sample in range(len(activations)):
        if groups and _same_beginning(activations, groups[-1][0], sample):
            groups[-1].append(sample)
        else:
            groups.append([sample])
    return groups


def pack(activations: Activations, groups: Sequence[Sequence[int]]) -> Packed:
    """A batch with one row for each group."""
    rows, places, positions, segments = [], [], [], []
    for row, group in enumerate(groups):
        shared = _beginning(activations, group[0])
        found = [activations.sequences[group[0]].positions[..., :shared]]
        segment, width = [torch.full((shared,), _SHARED)], shared
        for number, sample in enumerate(group):
            own = len(activations.states[sample]) - shared
            places.append(torch.cat((torch.arange(shared), torch.arange(width, width + own))))
            found.append(activations.sequences[sample].positions[..., shared:])
            segment.append(torch.full((own,), number))
            width += own
            rows.append(row)
        positions.append(torch.cat(found, dim=-1))
        segments.append(torch.cat(segment))
    longest = max(map(len, segments))
    segment_ids = torch.stack([F.pad(each, (0, longest - len(each)), value=_PADDING) for each in segments])
    same = (segment_ids[:, :, None] == segment_ids[:, None, :]) | (segment_ids == _SHARED)[:, None, :]
    causal = torch.ones(longest, longest, dtype=torch.bool).tril()
    padded = [F.pad(each, (0, longest - each.shape[-1])) for each in positions]
    samples = tuple(sample for group in groups for sample in group)
    return Packed(samples, tuple(rows), tuple(places), torch.cat(padded, dim=-2), (same & causal)[:, None])


def _beginning(activations: Activations, sample: int) -> int:
    """Positions up to the end of the last image."""
    image = activations.sequences[sample].is_image.nonzero()
    return int(image[-1]) + 1 if len(image) else 0


def _same_beginning(activations: Activations, first: int, second: int) -> bool:
    shared = _beginning(activations, first)
    if not shared or shared != _beginning(activations, second):
        return False
    positions = (activations.sequences[each].positions[..., :shared] for each in (first, second))
    states = (activations.states[each][:shared] for each in (first, second))
    return torch.equal(*positions) and torch.equal(*states)
