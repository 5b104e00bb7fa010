"""G-Search and P-Sigmoid (arXiv 2412.00556): how many image tokens go on behind each stage of the decoder.

In: a model and calibration questions. Out: counts for the layers of `pyramiddrop`, which ranks tokens by attention. The
published search goes from the shallow layers to the deep ones: with what was found in front of a layer, and nothing
dropped behind it, it looks for the least number of tokens with which answers stay as they are. Every layer of the
publication may drop tokens; here those at the end of each of some stages, since each costs inputs of the graph.

Answers stay where the unpruned model's most probable next token, at every position of the calibration answer (at the
end of the prompt where there is none), is still the most probable. Halving finds the least count, if more tokens never
do worse, which the publication assumes and attention need not always keep.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from pydantic import Field, model_validator
from torch import Tensor

from edgevlm.calibration.activations import Activations, embed
from edgevlm.calibration.answers import answer_logits
from edgevlm.calibration.layers import run_through
from edgevlm.calibration.scratch import Scratch
from edgevlm.errors import InputError
from edgevlm.models.decoder import Decoder
from edgevlm.models.vlm import VlmModel
from edgevlm.passes import PassContext
from edgevlm.progress import Report, part_of
from edgevlm.pruning.tokens.chooser import Choice, Chooser
from edgevlm.pruning.tokens.psigmoid import counts, middle_for, spent
from edgevlm.pruning.tokens.pyramiddrop import PyramidDrop, PyramidDropOptions, even_layers
from edgevlm.pruning.tokens.reducer import Options
from edgevlm.spec import DropStage, ModelSpec

#: Of the sigmoid: from nearly a straight line to a step between two layers.
STEEPNESS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)


class GSearchOptions(Options):
    """Options of `gsearch`.

    Attributes:
        tolerance: so large a share of the calibration answers may change; the stages share it evenly.
        stages: times that tokens are dropped, evenly over the layers; fewer where there are fewer layers.
        budget: instead of a tolerance, the mean over layers of the share of tokens that goes through them.
    """

    tolerance: float = Field(default=0.05, ge=0, lt=1)
    stages: int = Field(default=4, ge=1)
    budget: float | None = Field(default=None, gt=0, lt=1)

    @model_validator(mode="after")
    def _one(self) -> GSearchOptions:
        if self.budget is not None and "tolerance" in self.model_fields_set:
            raise ValueError("give tolerance or budget")
        return self


@dataclass(frozen=True)
class Agreement:
    """How much of the unpruned model's answers is left.

    Attributes:
        same: samples in which each of its tokens is still the most probable.
        likelihood: mean log-probability of its tokens.
    """

    same: int
    likelihood: float


class GSearch(Chooser[GSearchOptions]):
    """The least counts that keep the answers, stage after stage; or those of a sigmoid that suits a budget best."""

    name = "gsearch"
    summary = "as few behind each of several decoder layers as leave the answers as they are"
    source = "G-Search, P-Sigmoid (arXiv 2412.00556)"
    needs_text = inside_decoder = True
    Options = GSearchOptions

    @classmethod
    def refuses(cls, spec: ModelSpec, options: GSearchOptions) -> str | None:
        """A decoder or an image of one, or a budget that the layers in front of the first stage exceed."""
        tokens, layers = spec.vision.image_tokens, spec.decoder.num_hidden_layers
        if layers < 2 or tokens < 2:
            return f"of {tokens} tokens and {layers} layers nothing can be dropped"
        stages = _stages(spec, options)
        least = spent(tokens, layers, stages, [1] * len(stages))
        if options.budget is not None and options.budget < least:
            return f"a budget below {least:.3f} is spent by its first {stages[0]} layers, which all tokens go through"
        return None

    @classmethod
    def supposed(cls, spec: ModelSpec, options: GSearchOptions) -> Choice:
        """One token less."""
        return _choice((DropStage(_stages(spec, options)[0], spec.vision.image_tokens - 1),), "")

    @classmethod
    @torch.no_grad()
    def choose(cls, model: VlmModel, context: PassContext, options: GSearchOptions) -> Choice:
        """The counts.

        Raises:
            InputError: no token can go.
        """
        assert context.calibration is not None
        scratch = Scratch(context.calibration.memory)
        activations = embed(model, context.calibration, scratch, part_of(context.progress, 0, 0.3))
        search, progress = _Search(model, activations, scratch), part_of(context.progress, 0.3, 1)
        places = _stages(model.spec, options)
        if options.budget is None:
            stages, agreement = search.least(places, options.tolerance, progress)
            how = f"at a tolerance of {options.tolerance:g}"
        else:
            stages, agreement, steepness = search.within(places, options.budget, progress)
            how = f"at a budget of {options.budget:g}, by a sigmoid of steepness {steepness:g}"
        kept = ", ".join(f"{stage.keep} behind layer {stage.after_layers}" for stage in stages)
        reason = f"gsearch chose of {model.spec.vision.image_tokens} tokens {kept} {how}"
        return _choice(stages, f"{reason}; {agreement.same} of {len(activations)} calibration answers stay")


def _stages(spec: ModelSpec, options: GSearchOptions) -> list[int]:
    layers = spec.decoder.num_hidden_layers
    return even_layers(layers, min(options.stages, layers - 1))


def _choice(stages: tuple[DropStage, ...], reason: str) -> Choice:
    return Choice(PyramidDrop.name, stages[-1].keep, reason, {"counts": _written(stages)})


def _written(stages: tuple[DropStage, ...]) -> str:
    return "/".join(f"{stage.after_layers}:{stage.keep}" for stage in stages)


def least_counts(
    places: Sequence[int], tokens: int, trial: Callable[[tuple[DropStage, ...]], bool]
) -> tuple[DropStage, ...]:
    """Stage after stage the least count with which a trial succeeds, found by halving.

    Args:
        places: layers in front of each stage, ascending.
        tokens: that enter.
        trial: whether the answers stay with the stages found so far and one more; nothing is dropped behind it.

    Returns:
        The stages that drop tokens.
    """
    found: tuple[DropStage, ...] = ()
    for place in places:
        low, high = 1, found[-1].keep if found else tokens
        entering = high
        while low < high:
            count = (low + high) // 2
            if trial((*found, DropStage(place, count))):
                high = count
            else:
                low = count + 1
        if high < entering:
            found = (*found, DropStage(place, high))
    return found


class _Search:
    """One search."""

    def __init__(self, model: VlmModel, start: Activations, scratch: Scratch) -> None:
        """Run the unpruned model.

        Args:
            model: without a method.
            start: in front of its first layer.
            scratch: room for what lies in front of other layers.
        """
        self._model, self._start = model, start
        self._tokens, self._layers = model.spec.vision.image_tokens, model.spec.decoder.num_hidden_layers
        self._room, self._front, self._begin = start.copy(scratch), start.copy(scratch), 0
        run_through(model.decoder, self._room)
        self._wanted = [answer_logits(model.decoder, self._room, sample).argmax(dim=1) for sample in range(len(start))]

    def least(self, places: list[int], tolerance: float, progress: Report) -> tuple[tuple[DropStage, ...], Agreement]:
        """The least count behind each place.

        Raises:
            InputError: nowhere a token can go.
        """

        def trial(stages: tuple[DropStage, ...]) -> bool:
            place, count = stages[-1].after_layers, stages[-1].keep
            stage = places.index(place)
            progress(stage, len(places), f"gsearch: {count} tokens behind layer {place}")
            self._advance(stages[:-1], place - 1)
            # Else the first stage would use up what may change, and nothing could go behind the others.
            allowed = tolerance * (stage + 1) / len(places)
            return self._agreement(stages, self._front, self._begin).same >= (1 - allowed) * len(self._start)

        found = least_counts(places, self._tokens, trial)
        if not found:
            what = f"no image token can go at a tolerance of {tolerance:g}"
            raise InputError(what, "prune_tokens option 'tolerance'", "allow more")
        return found, self._agreement(found, self._start, 0)

    def within(
        self, places: list[int], budget: float, progress: Report
    ) -> tuple[tuple[DropStage, ...], Agreement, float]:
        """The counts of the steepness with which most answers stay; of equal ones the likeliest, then the first."""
        found = []
        for number, steepness in enumerate(STEEPNESS):
            progress(number, len(STEEPNESS), f"gsearch: a sigmoid of steepness {steepness:g}")
            middle = middle_for(self._tokens, self._layers, places, steepness, budget)
            kept = counts(self._tokens, self._layers, places, steepness, middle)
            stages = _falling(places, kept, self._tokens)
            found.append((stages, self._agreement(stages, self._start, 0), steepness))
        return max(found, key=lambda each: (each[1].same, each[1].likelihood))

    def _advance(self, found: tuple[DropStage, ...], layer: int) -> None:
        """Put what lies in front of a layer, whose attention decides, where trials begin."""
        run_through(self._decoder(found), self._front, layers=range(self._begin, layer))
        self._begin = layer

    def _agreement(self, stages: tuple[DropStage, ...], start: Activations, begin: int) -> Agreement:
        """How much is left with these stages, from `start` in front of layer `begin`."""
        self._room.restore(start)
        decoder = self._decoder(stages)
        run_through(decoder, self._room, layers=range(begin, self._layers))
        same, total, positions = 0, 0.0, 0
        for sample, wanted in enumerate(self._wanted):
            logits = answer_logits(decoder, self._room, sample)
            same += bool(torch.equal(logits.argmax(dim=1), wanted))
            total += float(_log_probability(logits, wanted).sum())
            positions += len(wanted)
        return Agreement(same, total / positions)

    def _decoder(self, stages: tuple[DropStage, ...]) -> Decoder:
        """The model's decoder with these stages; its weights are the model's."""
        if not stages:
            return self._model.decoder
        options = PyramidDropOptions(counts=_written(stages))
        return PyramidDrop.reduced(self._model, stages[-1].keep, options).decoder


def _log_probability(logits: Tensor, tokens: Tensor) -> Tensor:
    return logits.double().log_softmax(dim=1).gather(1, tokens[:, None])


def _falling(places: list[int], kept: list[int], tokens: int) -> tuple[DropStage, ...]:
    """Stages behind which there are fewer tokens than in front; the others are no stages."""
    stages: list[DropStage] = []
    for place, count in zip(places, kept, strict=True):
        if count < (stages[-1].keep if stages else tokens):
            stages.append(DropStage(place, count))
    return tuple(stages)
