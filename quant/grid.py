"""The integer grid of a group of weights: where it lies, which code a value gets, and what the code stands for.

In: float32 groups `[..., G]` along the last axis. Symmetric grids follow MLAS, the kernels of ONNX Runtime: the
element of largest magnitude, with its sign, maps to the one code without a mirror image, -2^(bits-1), so that no code
is wasted. Other grids span from the smallest to the largest element, zero included.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edgevlm.quant.gguf_grid import storable_scales
from edgevlm.quant.tensor import QuantizedTensor, QuantScheme


@dataclass(frozen=True)
class Grid:
    """Scales float32 `[...]` and zero points float32 `[...]` (whole numbers) of groups, and the largest code."""

    scale: Tensor
    zero: Tensor
    top: int

    def encode(self, values: Tensor) -> Tensor:
        """The nearest codes of float32 values `[..., G]`, as float32; a group of scale 0 gets its zero point."""
        divisor = torch.where(self.scale == 0, 1, self.scale)[..., None]
        return (values / divisor).round_().add_(self.zero[..., None]).clamp_(0, self.top)

    def decode(self, codes: Tensor) -> Tensor:
        """What codes `[..., G]` stand for."""
        return (codes - self.zero[..., None]) * self.scale[..., None]

    def nearest(self, values: Tensor) -> Tensor:
        """The grid's points nearest to values `[..., G]`."""
        return self.decode(self.encode(values))


def fit(groups: Tensor, scheme: QuantScheme, shrink: Tensor | float = 1.0) -> Grid:
    """The grid of float32 groups `[..., G]`.

    Args:
        groups: a short group is filled up with zeros, which change neither its range nor its scale.
        scheme: bits, symmetry, and whether scales are float16 numbers.
        shrink: of the range, 1 or less `[...]`; values outside are clipped.
    """
    levels, middle = (1 << scheme.bits) - 1, 1 << (scheme.bits - 1)
    low, high = groups.amin(dim=-1).clamp(max=0), groups.amax(dim=-1).clamp(min=0)
    if scheme.symmetric:
        scale = torch.where(high > -low, high, low) / -middle * shrink
        zero = torch.full_like(scale, middle)
    else:
        scale = (high - low) / levels * shrink
        zero = torch.where(scale > 0, -low * shrink / scale, 0).round().clamp(0, levels)
    if scheme.half_scales:
        scale = storable_scales(scale, symmetric=scheme.symmetric)
    return Grid(scale, zero, levels)


#: Shares of a group's range that `search` tries.
SHRINKS = tuple(1 - step / 20 for step in range(11))


def search(groups: Tensor, scheme: QuantScheme, importance: Tensor) -> Grid:
    """The grid, of those with a range shrunk to between 1 and a half, on which rounding costs least.

    Args:
        groups: float32 `[N, G, group]`.
        scheme: bits and symmetry.
        importance: what an error weighs, float32: of each input channel, squared, `[G, group]`, or of each pair of them
            `[G, group, group]`.
    """
    best = fit(groups, scheme)
    least = _cost(groups, best, importance)
    for shrink in SHRINKS[1:]:
        grid = fit(groups, scheme, shrink)
        cost = _cost(groups, grid, importance)
        better = cost < least
        least = torch.where(better, cost, least)
        best = Grid(torch.where(better, grid.scale, best.scale), torch.where(better, grid.zero, best.zero), best.top)
    return best


def _cost(groups: Tensor, grid: Grid, importance: Tensor) -> Tensor:
    errors = grid.nearest(groups) - groups
    if importance.ndim == 2:
        return (errors.square_() * importance).sum(dim=-1)
    weighed = torch.matmul(errors.transpose(0, 1), importance).transpose(0, 1)
    return (weighed * errors).sum(dim=-1)


def finite(weight: Tensor) -> Tensor:
    """A weight in float32.

    Raises:
        ValueError: it holds a value that is not finite.
    """
    values = weight.detach().float()
    if not bool(torch.isfinite(values).all()):
        raise ValueError("the weight holds a value that is not finite")
    return values


def grouped(weight: Tensor, size: int) -> Tensor:
    """A matrix `[N, K]` as groups `[N, ceil(K / size), size]`; the last is filled up with zeros."""
    rows, columns = weight.shape
    return torch.nn.functional.pad(weight, (0, -columns % size)).view(rows, -1, size)


def on_grid(groups: Tensor, grid: Grid, columns: int, scheme: QuantScheme) -> QuantizedTensor:
    """Groups `[N, G, group]` of a matrix `[N, K]` rounded to their grids."""
    return laid_out(grid.encode(groups).view(len(groups), -1)[:, :columns], grid, scheme)


def laid_out(codes: Tensor, grid: Grid, scheme: QuantScheme) -> QuantizedTensor:
    """Codes `[N, K]`, as float32, with the grids `[N, G]` that they are on."""
    zeros = None if scheme.symmetric else grid.zero.to(torch.uint8).numpy()
    return QuantizedTensor(codes.to(torch.uint8).numpy(), grid.scale.numpy(), zeros, scheme)
