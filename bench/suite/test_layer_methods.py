"""What quantizing and pruning one decoder layer of full width costs: fastvlm-0.5b's, random weights, all cores.

Second moments are of random inputs whose channels differ in size, as those of language models do.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from edgevlm.calibration.layers import linear_groups
from edgevlm.calibration.moments import LayerMoments
from edgevlm.calibration.statistics import SecondMoments
from edgevlm.models.decoder import DecoderLayer
from edgevlm.pruning.weights.masks import Pattern
from edgevlm.pruning.weights.sparsegpt import sparsegpt
from edgevlm.pruning.weights.wanda import magnitude, wanda
from edgevlm.quant.layer_codes import GptqOptions, layer_codes
from edgevlm.quant.presets import PRESETS
from edgevlm.zoo.synth import SPECS

MODEL = "fastvlm-0.5b"
SCHEMES = ("w4-rtn", "w4-gptq", "w4-awq", "w4-hqq")
#: Positions that the moments are of.
SAMPLES = 8192
#: Half of all weights, or two of every four.
TARGETS = {"half": None, "2:4": Pattern(2, 4)}
#: A matrix `[N, C]`, the moments of its inputs, and how many zeros or which pattern, to the pruned matrix.
PRUNERS: dict[str, Callable[[Tensor, Tensor, int | Pattern], Tensor]] = {
    "magnitude": lambda weight, _, target: magnitude(weight, target),
    "wanda": lambda weight, moments, target: wanda(weight, moments.diagonal(), target),
    "sparsegpt": sparsegpt,
}
ROUNDS = 2


@pytest.fixture(scope="module")
def found() -> LayerMoments:
    """The layer and what goes into it."""
    torch.manual_seed(0)
    layer = DecoderLayer(SPECS[MODEL].decoder).requires_grad_(False)
    moments = {}
    for group in linear_groups(layer):
        channels = layer.get_parameter(f"{group[0]}.weight").shape[1]
        collected, sizes = SecondMoments(channels), torch.randn(channels).exp()
        collected.add(torch.randn(SAMPLES, channels) * sizes)
        moments[group[0]] = collected.mean
    return LayerMoments(0, layer, moments)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_quantize_layer(benchmark: Any, found: LayerMoments, scheme: str) -> None:
    def fresh() -> tuple[tuple[Any, ...], dict[str, Any]]:
        # AWQ changes the layer.
        return (LayerMoments(0, copy.deepcopy(found.layer), found.moments), PRESETS[scheme], GptqOptions()), {}

    codes = benchmark.pedantic(layer_codes, setup=fresh, rounds=ROUNDS)
    assert len(codes) == sum(map(len, linear_groups(found.layer)))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("method", PRUNERS)
def test_prune_layer(benchmark: Any, found: LayerMoments, method: str, target: str) -> None:
    def prune() -> list[Tensor]:
        pruned = []
        for group in linear_groups(found.layer):
            for name in group:
                weight = found.layer.get_parameter(f"{name}.weight")
                zeros = TARGETS[target] or weight.numel() // 2
                pruned.append(PRUNERS[method](weight, found.moments[group[0]], zeros))
        return pruned

    for weight in benchmark.pedantic(prune, rounds=ROUNDS):
        assert (weight == 0).float().mean().item() == pytest.approx(0.5, abs=1e-3)
