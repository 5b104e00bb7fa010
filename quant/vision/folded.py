"""The weights of a vision side as its int8 graph holds them: smoothing and layer scale folded in.

In: a `VisionModel` and the `StaticPlan` made of it. Out: single parameters in float32, or a copy that computes the same
but for the weights that become codes. Folding changes no feature: what is divided in one place is multiplied in the
next.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from edgevlm.models.vlm import VisionModel
from edgevlm.quant.vision.layers import output_multipliers, output_scales
from edgevlm.quant.vision.plan import StaticPlan


def effective(vision: VisionModel, plan: StaticPlan, name: str) -> Tensor:
    """One parameter in float32: rows divided as the plan says, multiplied by a layer scale, columns by factors.

    A layer scale that went into a layer on int8 is all ones.
    """
    parameters, scales = dict(vision.named_parameters()), output_scales(vision)
    value = parameters[name].detach().float()
    if name in scales and scales[name] in plan.layers:
        return torch.ones_like(value)
    if name in plan.divided:
        value = value / _along_rows(torch.from_numpy(plan.divided[name]), value)
    layer, _, part = name.rpartition(".")
    if layer not in plan.layers:
        return value
    if layer in (multipliers := output_multipliers(vision)):
        value = value * _along_rows(multipliers[layer], value)
    factors = plan.layers[layer].factors
    if part == "weight" and factors is not None:
        value = value * _along_rows(torch.from_numpy(factors), value[0])
    return value


def folded(vision: VisionModel, plan: StaticPlan) -> VisionModel:
    """A copy whose parameters are `effective`, but for weights of layers on int8; what does not change is shared."""
    changed = set(plan.divided)
    for scale, layer in output_scales(vision).items():
        if layer in plan.layers:
            changed |= {scale, f"{layer}.bias"}
    changed -= {f"{layer}.weight" for layer in plan.layers}
    memo: dict[int, Any] = {}
    for name, parameter in vision.named_parameters():
        new = effective(vision, plan, name) if name in changed else parameter
        memo[id(parameter)] = nn.Parameter(new, requires_grad=False) if name in changed else parameter
    memo |= {id(buffer): buffer for buffer in vision.buffers()}
    return copy.deepcopy(vision, memo)


def _along_rows(vector: Tensor, value: Tensor) -> Tensor:
    """A vector in a shape that multiplies the first axis of a value."""
    return vector.view(-1, *[1] * (value.ndim - 1))
