"""The pass `shortgpt`: whole decoder layers are dropped, those that change the hidden states or the answers least.

In: a model and calibration samples. Out: a model with fewer layers, which is smaller and faster in every format. A
layer's block influence is one minus the mean cosine between what enters and what leaves it (arXiv 2403.03853). Answers
tell more at a price: the layer goes without which their distributions change least, then the one that what is left can
best do without, and so on. The number of layers is given, or a bound on the KL divergence from the original's answers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from edgevlm.calibration.activations import Activations, embed
from edgevlm.calibration.answers import divergence
from edgevlm.calibration.layers import run_through
from edgevlm.calibration.scratch import Scratch
from edgevlm.errors import InputError
from edgevlm.models.decoder import Decoder
from edgevlm.models.rebuild import with_decoder, with_note
from edgevlm.models.vlm import VlmModel
from edgevlm.passes import Pass, PassContext, Stage
from edgevlm.progress import Report, part_of
from edgevlm.spec import ModelSpec


class ShortGptConfig(BaseModel):
    """How many layers go.

    Attributes:
        layers: so many, or
        kl: as many as keep the mean KL divergence of the answers' distributions below this (nats).
        by: what chooses them: their `influence`, or the `answers`, a pass over the samples for every layer and choice.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    layers: int | None = Field(default=None, ge=1)
    kl: float | None = Field(default=None, gt=0)
    by: Literal["influence", "answers"] = "influence"

    @model_validator(mode="after")
    def _one(self) -> ShortGptConfig:
        if (self.layers is None) == (self.kl is None):
            raise ValueError("give layers or kl")
        return self


class ShortGpt(Pass[ShortGptConfig]):
    """Fewer decoder layers."""

    name, stage = "shortgpt", Stage.STRUCTURE
    page = "docs/weight-pruning.md"
    Config = ShortGptConfig
    needs_calibration = True

    def applies_to(self, spec: ModelSpec) -> str | None:
        """Why this model cannot take the pass, or None."""
        if spec.decoder.token_drop is not None:
            return f"{spec.decoder.token_drop.name} drops image tokens behind layers whose numbers would change"
        have, wanted = spec.decoder.num_hidden_layers, self.config.layers or 1
        return None if wanted < have else f"it has {have} layers, {wanted} cannot go"

    def planned(self, spec: ModelSpec) -> ModelSpec:
        """The spec with fewer layers; with `kl` nobody knows yet how many."""
        left = spec.decoder.num_hidden_layers - (self.config.layers or 0)
        return dataclasses.replace(spec, decoder=dataclasses.replace(spec.decoder, num_hidden_layers=left))

    @torch.no_grad()
    def run(self, model: VlmModel, context: PassContext) -> VlmModel:
        """The model without the layers of least influence.

        Raises:
            InputError: not one layer can go within the bound.
        """
        assert context.calibration is not None
        scratch = Scratch(context.calibration.memory)
        activations = embed(model, context.calibration, scratch, part_of(context.progress, 0, 0.4))
        answers = activations.copy(scratch)
        influence = block_influence(model.decoder, answers)
        order = sorted(range(len(influence)), key=lambda layer: (influence[layer], layer))
        if self.config.layers is not None and self.config.by == "influence":
            dropped, found = order[: self.config.layers], ""
        else:
            room = activations.copy(scratch)

            def without(gone: list[int]) -> float:
                room.restore(activations)
                run_through(model.decoder, room, layers=[layer for layer in range(len(order)) if layer not in gone])
                return divergence(model.decoder, room, answers)

            dropped, kl = self._chosen(_ever_fewer(without, order, self.config.by, part_of(context.progress, 0.5, 1)))
            found = f", KL of the answers {kl:.4f}"
        kept = [layer for layer in range(len(influence)) if layer not in dropped]
        spec = dataclasses.replace(model.spec.decoder, num_hidden_layers=len(kept))
        shorter = with_decoder(model, spec, {}, kept)
        gone = ", ".join(str(layer) for layer in sorted(dropped))
        what = f"{len(dropped)} of {len(influence)} decoder layers dropped (counted from 0: {gone}){found}"
        return with_note(shorter, f"shortgpt: {what}")

    def _chosen(self, choices: Iterator[tuple[list[int], float]]) -> tuple[list[int], float]:
        """As many layers as are asked for, or as keep the divergence within the bound; and the divergence."""
        best: tuple[list[int], float] = ([], 0.0)
        for dropped, kl in choices:
            if self.config.kl is not None and kl > self.config.kl:
                if best[0]:
                    break
                raise InputError(
                    f"no decoder layer can go within KL {self.config.kl}: the least important costs {kl:.4f}",
                    "shortgpt field 'kl'",
                    "allow more, or give layers and heal afterwards",
                )
            best = (dropped, kl)
            if len(dropped) == self.config.layers:
                break
        return best


def block_influence(decoder: Decoder, activations: Activations) -> list[float]:
    """One minus the mean cosine of a position's states in front of and behind each layer; the states are used up."""
    totals = [0.0] * len(decoder.layers)

    def watch(layer: int, _sample: int, before: Tensor, after: Tensor) -> None:
        totals[layer] += float(F.cosine_similarity(before.double(), after.double(), dim=1).sum())

    run_through(decoder, activations, watch)
    count = sum(map(len, activations.states))
    return [1 - total / count for total in totals]


def _ever_fewer(
    without: Callable[[list[int]], float], order: list[int], by: str, progress: Report
) -> Iterator[tuple[list[int], float]]:
    """One more layer gone each time, until one is left, and the divergence that this costs.

    Args:
        without: the divergence when these layers are gone.
        order: all layers, from the least influence.
        by: `influence` takes them in this order, `answers` tries all that are left.
        progress: called with layers gone, layers in all.
    """
    gone: list[int] = []
    while len(gone) < len(order) - 1:
        left = [layer for layer in order if layer not in gone]
        costs = {}
        for layer in left if by == "answers" else left[:1]:
            progress(len(gone), len(order) - 1, f"without layer {layer}")
            costs[layer] = without([*gone, layer])
        best = min(costs, key=lambda layer: costs[layer])
        gone.append(best)
        yield list(gone), costs[best]
