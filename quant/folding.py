"""Factors of a linear layer's input channels, folded into the weights around it so that nothing is computed for them.

In: a float32 layer and factors `[C]` of the inputs of one group of linear modules (`linear_groups`). The modules'
columns are multiplied, and what makes their inputs is divided: a norm before attention or MLP; the values, whose
weighted means attention's output layer reads; the branch that a gate multiplies. Behind a nonlinearity (Phi's MLP)
there is nothing to divide.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgevlm.models.decoder import DecoderLayer, SwiGLU


@dataclass(frozen=True)
class Source:
    """What makes the inputs of a group of linear modules.

    Attributes:
        module: its name in the layer; its outputs are the inputs, or are multiplied into them channel by channel.
        owners: int64 `[C]`, the output channel of `module` behind each input channel.
    """

    module: str
    owners: Tensor


def source_of(layer: DecoderLayer, group: tuple[str, ...]) -> Source | None:
    """What factors of the group's inputs can be folded into, or None."""
    first = layer.get_submodule(group[0])
    assert isinstance(first, nn.Linear)
    channels = torch.arange(first.in_features)
    if group[0] == "self_attn.q_proj":
        return Source("input_layernorm", channels)
    if group[0] == "self_attn.o_proj":
        spec = layer.self_attn.spec
        repeats = spec.num_attention_heads // spec.num_key_value_heads
        head, place = channels // spec.head_dim, channels % spec.head_dim
        return Source("self_attn.v_proj", head // repeats * spec.head_dim + place)
    if group[0] in ("mlp.gate_proj", "mlp.fc1"):
        return Source("post_attention_layernorm", channels)
    return Source("mlp.up_proj", channels) if isinstance(layer.mlp, SwiGLU) else None


@torch.no_grad()
def fold(layer: DecoderLayer, group: tuple[str, ...], source: Source, factors: Tensor) -> None:
    """Multiply the group's columns and divide their source, in place; the layer computes what it did.

    Args:
        layer: float32.
        group: names of linear modules with the same inputs.
        source: `source_of` them.
        factors: float32 `[C]`, equal where owners are.
    """
    for name in group:
        module = layer.get_submodule(name)
        assert isinstance(module, nn.Linear)
        module.weight.mul_(factors)
    divided = layer.get_submodule(source.module)
    shares = torch.ones(len(divided.weight)).index_copy_(0, source.owners, factors)  # type: ignore[arg-type]
    for parameter in divided.parameters():
        parameter.div_(shares.view(-1, *(1,) * (parameter.ndim - 1)))
