"""What trains when a pruned model is healed: the linear layers of its decoder, whole or through LoRA factors.

In: a decoder, possibly with zeros that must stay. Out: float32 layers that can be trained, and afterwards their weights
as plain matrices. Zeros stay zeros in both ways of training.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from edgevlm.calibration.layers import linear_groups
from edgevlm.models.decoder import Decoder, DecoderLayer, KeyValue


class Adapted(nn.Module):
    """A linear layer whose weight is W + B A where W is not zero (LoRA, arXiv 2106.09685; its scale is 1)."""

    def __init__(self, linear: nn.Linear, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        out_features, in_features = linear.weight.shape
        rank = min(rank, in_features, out_features)
        self.weight = nn.Parameter(linear.weight.detach(), requires_grad=False)
        self.bias = linear.bias
        self.mask = _zeros_stay(linear.weight)
        self.a = nn.Parameter(torch.randn(rank, in_features, generator=generator) / math.sqrt(in_features))
        self.b = nn.Parameter(torch.zeros(out_features, rank))

    def merged(self) -> Tensor:
        """The weight `[N, C]` that it computes with."""
        weight = self.weight + self.b @ self.a
        return weight if self.mask is None else weight * self.mask

    def forward(self, x: Tensor) -> Tensor:
        """`[..., C]` to `[..., N]`."""
        return F.linear(x, self.merged(), self.bias)


class Student(nn.Module):
    """The decoder's layers in float32; embedding, last norm and head are not part of it."""

    def __init__(self, decoder: Decoder, rank: int | None, seed: int, *, save_memory: bool = False) -> None:
        """Copy the layers.

        Args:
            decoder: stays as it is.
            rank: of the LoRA factors; None trains all weights of the layers.
            seed: of the factors' start.
            save_memory: compute a layer's activations a second time instead of keeping them.
        """
        super().__init__()
        self.layers = nn.ModuleList([copy.deepcopy(layer).float() for layer in decoder.layers])
        self._save_memory = save_memory
        self._masks: dict[str, Tensor] = {}
        generator = torch.Generator().manual_seed(seed)
        if rank is None:
            self.requires_grad_(True)
            found = {name: _zeros_stay(p) for name, p in self.named_parameters() if p.ndim == 2}
            self._masks = {name: mask for name, mask in found.items() if mask is not None}
            return
        self.requires_grad_(False)
        for layer in self.layers:
            assert isinstance(layer, DecoderLayer)
            for name in [name for group in linear_groups(layer) for name in group]:
                linear = layer.get_submodule(name)
                assert isinstance(linear, nn.Linear)
                layer.set_submodule(name, Adapted(linear, rank, generator))

    def trained(self) -> list[nn.Parameter]:
        """What an optimiser changes."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def forward(self, states: Tensor, rotary: KeyValue, mask: Tensor | None = None) -> list[Tensor]:
        """States `[B, S, H]` in front of the first layer to those behind each; `mask` is bool `[B, 1, S, S]`."""
        found = []
        for layer in self.layers:
            if self._save_memory:
                states = checkpoint(_outputs, layer, states, rotary, mask, use_reentrant=False)
            else:
                states = _outputs(layer, states, rotary, mask)
            found.append(states)
        return found

    @torch.no_grad()
    def after_step(self) -> None:
        """Put back the zeros that an optimiser's step moved."""
        for name, mask in self._masks.items():
            self.get_parameter(name).mul_(mask)

    @torch.no_grad()
    def weights(self) -> dict[str, Tensor]:
        """The layers' tensors, float32, by their names in the decoder."""
        tensors = {name: value for name, value in self.state_dict().items() if not name.endswith((".a", ".b"))}
        for name, module in self.named_modules():
            if isinstance(module, Adapted):
                tensors[f"{name}.weight"] = module.merged()
        return tensors


def _outputs(layer: nn.Module, states: Tensor, rotary: KeyValue, mask: Tensor | None) -> Tensor:
    result: Tensor = layer(states, rotary, None, mask)[0]
    return result


def _zeros_stay(weight: Tensor) -> Tensor | None:
    """1 where a weight is not zero; None where none is."""
    mask = weight.detach() != 0
    return None if bool(mask.all()) else mask.to(weight.dtype)
