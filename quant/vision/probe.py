"""A vision side whose products can be watched, or computed in another way.

In: a `VlmModel`, names of layers, and what to do when one of them runs. Out: a model that the reference
(`edgevlm.reference`) computes like any other, so that calibration sees the same preprocessing, tiles and questions.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any, TypeAlias

from torch import Tensor, nn
from torch.nn import functional as F

from edgevlm.models.vlm import VlmModel

#: Called with a layer's name, the layer and its input; returns its output.
Compute: TypeAlias = Callable[[str, nn.Module, Tensor], Tensor]


class _Probe(nn.Module):
    """Stands for a layer. Copies of a module share it, and it has no parameters of its own."""

    def __init__(self, name: str, layer: nn.Module, compute: Compute) -> None:
        super().__init__()
        self._name, self._compute = name, compute
        self._layer = (layer,)  # in a tuple, so that it is no submodule and stays as it is

    def __deepcopy__(self, memo: dict[int, Any]) -> _Probe:
        return self

    def forward(self, x: Tensor) -> Tensor:
        """What `compute` makes of the input."""
        return self._compute(self._name, self._layer[0], x)


def probed(model: VlmModel, names: Collection[str], compute: Compute) -> VlmModel:
    """The model with `compute` in place of the named layers of its vision side; the one given stays as it is."""
    layers = {name: module for name, module in model.vision.named_modules() if name in names}
    memo = {id(layer): _Probe(name, layer, compute) for name, layer in layers.items()}
    return replace(model, vision=copy.deepcopy(model.vision, memo))


def run(layer: nn.Module, x: Tensor, weight: Tensor | None = None) -> Tensor:
    """A linear layer or convolution over one pixel in float32, with another weight if one is given."""
    assert isinstance(layer, nn.Linear | nn.Conv2d)
    used = (layer.weight if weight is None else weight).float()
    bias = None if layer.bias is None else layer.bias.float()
    if isinstance(layer, nn.Conv2d):
        return F.conv2d(x, used, bias)
    return F.linear(x, used, bias)


def rows(layer: nn.Module, x: Tensor) -> Tensor:
    """A layer's input as `[P, C]`, one row a position."""
    return (x.movedim(1, -1) if isinstance(layer, nn.Conv2d) else x).reshape(-1, weight_of(layer).shape[1])


def per_channel(layer: nn.Module, factors: Tensor) -> Tensor:
    """Factors `[C]` in a shape that multiplies the layer's input."""
    return factors[:, None, None] if isinstance(layer, nn.Conv2d) else factors


def weight_of(layer: nn.Module) -> Tensor:
    """The weight `[N, C, ...]`."""
    assert isinstance(layer, nn.Linear | nn.Conv2d)
    return layer.weight
