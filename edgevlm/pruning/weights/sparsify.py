"""The pass `prune_weights`: zeros in the linear layers of the decoder, by magnitude, Wanda or SparseGPT.

In: a model, and calibration samples except for magnitude. Out: the same model with a share of zeros, or an n:m pattern,
layer after layer, each judged on what the pruned layers before it really give. Embedding, head, norms and the vision
tower keep their weights. The artefact keeps its size, since dense formats store zeros like other numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor

from edgevlm.calibration.activations import Activations, embed
from edgevlm.calibration.layers import LayerStep, linear_groups, walk
from edgevlm.calibration.scratch import Scratch
from edgevlm.calibration.statistics import SecondMoments, SquaredNorms
from edgevlm.errors import InputError
from edgevlm.models.decoder import Decoder, DecoderLayer
from edgevlm.models.rebuild import with_decoder, with_note
from edgevlm.models.vlm import VlmModel
from edgevlm.passes import Pass, PassContext, Stage
from edgevlm.progress import Report, part_of
from edgevlm.pruning.weights import ecoflap, tamp
from edgevlm.pruning.weights.budgets import allocate, whole_zeros
from edgevlm.pruning.weights.masks import Pattern, parse_pattern
from edgevlm.pruning.weights.sparsegpt import sparsegpt
from edgevlm.pruning.weights.wanda import magnitude, wanda
from edgevlm.spec import ModelSpec

Method = Literal["magnitude", "wanda", "sparsegpt"]
Budget = Literal["uniform", "ecoflap", "tamp"]


class PruneWeightsConfig(BaseModel):
    """What a recipe says about zeros.

    Attributes:
        method: who chooses them.
        sparsity: share of zeros between 0 and 1, or a pattern such as `2:4`, which leaves 2 of every 4.
        budget: how the share is divided among the layers.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: Method
    sparsity: float | str = Field(union_mode="left_to_right")
    budget: Budget = "uniform"

    @field_validator("sparsity")
    @classmethod
    def _check(cls, value: float | str) -> float | str:
        if isinstance(value, str) and parse_pattern(value) is None:
            raise ValueError("a share such as 0.5, or a pattern n:m such as 2:4, m one of 2, 4, 8, 16, 32")
        if isinstance(value, float) and not 0 < value < 1:
            # YAML reads 2:4 without quotes as a number of the base 60.
            raise ValueError('a share between 0 and 1, or a pattern in quotes such as "2:4"')
        return value


class PruneWeights(Pass[PruneWeightsConfig]):
    """Zeros in the decoder's linear layers."""

    name, stage = "prune_weights", Stage.SPARSITY
    page = "docs/weight-pruning.md"
    Config = PruneWeightsConfig

    def __init__(self, config: PruneWeightsConfig, seed: int) -> None:
        super().__init__(config, seed)
        self.pattern = parse_pattern(str(config.sparsity))
        self.sparsity = self.pattern.sparsity if self.pattern else float(config.sparsity)
        if self.pattern and config.budget != "uniform":
            raise InputError(
                f"a {self.pattern} pattern takes the same share of every layer, so {config.budget} cannot divide it",
                "prune_weights field 'budget'",
                "leave budget out, or give a share such as sparsity: 0.5",
            )
        self.needs_calibration = config.method != "magnitude" or config.budget != "uniform"

    def applies_to(self, spec: ModelSpec) -> str | None:
        """Why this model cannot take the pass, or None."""
        decoder = spec.decoder
        widths = {decoder.hidden_size, decoder.query_size, decoder.intermediate_size}
        wrong = [width for width in sorted(widths) if self.pattern and width % self.pattern.group]
        return f"its width {wrong[0]} is not a multiple of {self.pattern.group}" if wrong and self.pattern else None

    @torch.no_grad()
    def run(self, model: VlmModel, context: PassContext) -> VlmModel:
        """The model with zeros."""
        memory = 0 if context.calibration is None else context.calibration.memory
        scratch = Scratch(memory)
        if context.calibration is None or not self.needs_calibration:
            changed = self._by_magnitude(model.decoder, scratch, context.progress)
        else:
            activations = embed(model, context.calibration, scratch, part_of(context.progress, 0, 0.3))
            shares = self._shares(model.decoder, activations, scratch, part_of(context.progress, 0.3, 0.5))
            targets = self._targets(model.decoder, shares)
            changed = {}
            for step in walk(model.decoder, activations):
                count = len(model.decoder.layers)
                context.progress(0.5 + 0.5 * step.index / count, 1, f"layer {step.index + 1} of {count}")
                changed |= self._prune(step, targets, model.decoder.layers[step.index], scratch)
        pruned = with_decoder(model, model.spec.decoder, changed)
        return with_note(pruned, self._note(changed))

    def _by_magnitude(self, decoder: Decoder, scratch: Scratch, progress: Report) -> dict[str, Tensor]:
        targets, changed = self._targets(decoder, [self.sparsity] * len(decoder.layers)), {}
        for done, (name, target) in enumerate(targets.items()):
            progress(done, len(targets), name)
            stored = decoder.get_parameter(name)
            changed[name] = scratch.keep(magnitude(stored.float(), target), stored.dtype)
        return changed

    def _shares(
        self, decoder: Decoder, activations: Activations, scratch: Scratch, progress: Report
    ) -> Sequence[float]:
        """Share of zeros of each layer."""
        sizes = [sum(decoder.get_parameter(n).numel() for n in _names(decoder, i)) for i in range(len(decoder.layers))]
        if self.config.budget == "uniform":
            return [self.sparsity] * len(sizes)
        if self.config.budget == "tamp":
            scores = tamp.layer_scores(decoder, activations.copy(scratch))
        else:
            few = activations.copy(scratch, ecoflap.SAMPLES)
            scores = ecoflap.layer_scores(decoder, few, scratch, self.seed, progress)
        return allocate(scores, sizes, self.sparsity)

    def _targets(self, decoder: Decoder, shares: Sequence[float]) -> dict[str, int | Pattern]:
        """Zeros of each matrix, or the pattern, by the matrix's name in the decoder."""
        names = [(name, share) for index, share in enumerate(shares) for name in _names(decoder, index)]
        if self.pattern is not None:
            return {name: self.pattern for name, _ in names}
        zeros = whole_zeros([decoder.get_parameter(name).numel() for name, _ in names], [share for _, share in names])
        return {name: count for (name, _), count in zip(names, zeros, strict=True)}

    def _prune(
        self, step: LayerStep, targets: dict[str, int | Pattern], stored: torch.nn.Module, scratch: Scratch
    ) -> dict[str, Tensor]:
        """Change the layer in place; returns its new weights in the dtype that they are stored in."""
        tokens = tamp.core_tokens(step) if self.config.budget == "tamp" else None
        statistics: dict[str, Any] = {}
        if self.config.method != "magnitude":
            make = SecondMoments if self.config.method == "sparsegpt" else SquaredNorms
            statistics = dict(step.collect(make, tokens))
        changed = {}
        for name in (name for group in linear_groups(step.layer) for name in group):
            weight, full = step.linear(name).weight, f"layers.{step.index}.{name}.weight"
            target = targets[full]
            if self.config.method == "magnitude":
                new = magnitude(weight, target)
            elif self.config.method == "wanda":
                new = wanda(weight, statistics[name].mean, target)
            else:
                new = sparsegpt(weight, statistics[name].mean, target)
            changed[full] = scratch.keep(new, stored.get_parameter(f"{name}.weight").dtype)
            # What comes behind sees the weights as they are stored.
            weight.copy_(changed[full])
        return changed

    def _note(self, changed: dict[str, Tensor]) -> str:
        total = sum(weight.numel() for weight in changed.values())
        zeros = sum(int((weight == 0).sum()) for weight in changed.values())
        shown = f"{self.config.method}: {zeros / total:.1%} of the decoder's linear weights are zero"
        if self.pattern:
            return (
                f"{shown}, {self.pattern} in every row; files do not shrink and dense runtimes gain nothing, "
                "only kernels for this pattern do (TensorRT: 2:4)"
            )
        return f"{shown} ({self.config.budget}); files do not shrink and dense runtimes gain nothing from zeros"


def _names(decoder: Decoder, index: int) -> list[str]:
    """Names of a layer's matrices in the decoder."""
    layer = decoder.layers[index]
    assert isinstance(layer, DecoderLayer)
    return [f"layers.{index}.{name}.weight" for group in linear_groups(layer) for name in group]
