"""Inputs of linear layers, their moments, and weights, for tests of what rounds or prunes weights."""

import torch
from torch import Tensor

from edgevlm.calibration.statistics import SecondMoments


def correlated(rows: int, channels: int, seed: int = 0) -> Tensor:
    """Inputs whose channels have different sizes and depend on one another, as activations do."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(rows, channels, generator=generator) @ torch.randn(channels, channels, generator=generator)
    return mixed * torch.logspace(-1, 1, channels)[torch.randperm(channels, generator=generator)]


def moments_of(inputs: Tensor) -> Tensor:
    """Mean of x xᵀ."""
    moments = SecondMoments(inputs.shape[1])
    moments.add(inputs)
    return moments.mean


def normal(rows: int, columns: int, seed: int = 1) -> Tensor:
    """A weight."""
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def output_error(inputs: Tensor, weight: Tensor, rounded: Tensor) -> float:
    """Squared error of the outputs over their squares, from the inputs themselves."""
    expected = inputs.double() @ weight.double().T
    return float((inputs.double() @ rounded.double().T - expected).square().sum() / expected.square().sum())
