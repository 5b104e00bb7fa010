"""Codes of all matrices of one decoder layer, by the algorithm that a preset names.

In: a float32 layer with the second moments of what goes into it. Out: a `QuantizedTensor` for each of its linear
modules. Modules with the same inputs are quantized as one matrix.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edgevlm.calibration.layers import linear_groups
from edgevlm.calibration.moments import LayerMoments
from edgevlm.errors import CheckpointError
from edgevlm.models.decoder import DecoderLayer
from edgevlm.quant.awq import channel_factors, clipped
from edgevlm.quant.folding import fold, source_of
from edgevlm.quant.gptq import DAMPING, gptq
from edgevlm.quant.presets import Preset, scheme_of
from edgevlm.quant.schemes import DATA_FREE, group_size
from edgevlm.quant.tensor import QuantizedTensor, QuantScheme


@dataclass(frozen=True)
class GptqOptions:
    """What `edgevlm.quant.gptq` may be told."""

    act_order: bool = True
    damping: float = DAMPING


def layer_codes(found: LayerMoments, preset: Preset, options: GptqOptions) -> dict[str, QuantizedTensor]:
    """Codes by the names of the layer's linear modules.

    With AWQ its factors are folded into the layer, in place.

    Args:
        found: moments may be empty for algorithms that do not look at inputs.
        preset: algorithm and grid.
        options: of GPTQ.

    Raises:
        CheckpointError: a weight is not finite; it is named.
    """
    moments = _fold(found, preset) if "awq" in preset.algorithm else found.moments
    codes = {}
    for group in linear_groups(found.layer):
        weight = _stacked(found.layer, group)
        if not bool(torch.isfinite(weight).all()):
            where = f"decoder.layers.{found.index}.{group[0]}"
            raise CheckpointError("a weight is not finite", where, "download the checkpoint again")
        whole = _quantized(weight, moments.get(group[0]), scheme_for_width(preset, weight.shape[1]), options)
        start = 0
        for name in group:
            rows = slice(start, start := start + len(found.layer.get_parameter(f"{name}.weight")))
            zeros = None if whole.zero_points is None else whole.zero_points[rows]
            codes[name] = QuantizedTensor(whole.codes[rows], whole.scales[rows], zeros, whole.scheme)
    return codes


def scheme_for_width(preset: Preset, columns: int) -> QuantScheme:
    """The scheme of a matrix with `columns` inputs."""
    return scheme_of(preset, columns, group_size(columns))


def _quantized(weight: Tensor, moments: Tensor | None, scheme: QuantScheme, options: GptqOptions) -> QuantizedTensor:
    if scheme.algorithm in DATA_FREE:
        return DATA_FREE[scheme.algorithm](weight, scheme)
    assert moments is not None
    if scheme.algorithm == "awq":
        return clipped(weight, moments, scheme)
    return gptq(weight, moments, scheme, act_order=options.act_order, damping=options.damping)


def _fold(found: LayerMoments, preset: Preset) -> dict[str, Tensor]:
    """Fold AWQ's factors into the layer; returns the second moments of what its modules then get."""
    chosen = {}
    for group in linear_groups(found.layer):
        source, moments = source_of(found.layer, group), found.moments[group[0]]
        if source is not None:
            weight = _stacked(found.layer, group)
            scheme = scheme_for_width(preset, weight.shape[1])
            chosen[group] = source, channel_factors(weight, moments, scheme, source.owners)
    scaled = dict(found.moments)
    for group, (source, factors) in chosen.items():
        fold(found.layer, group, source, factors)
        scaled[group[0]] = scaled[group[0]] / factors / factors[:, None]
    return scaled


def _stacked(layer: DecoderLayer, group: tuple[str, ...]) -> Tensor:
    """The float32 matrices of modules with the same inputs, one below the other."""
    weights = [layer.get_parameter(f"{name}.weight").data for name in group]
    return weights[0] if len(weights) == 1 else torch.cat(weights)
