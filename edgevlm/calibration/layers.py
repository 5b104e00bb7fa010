"""The decoder's layers one after the other, over all calibration samples at once.

`walk` gives a float32 copy of each layer. Whoever asked looks at what goes into its linear layers, changes it, and goes
on; the outputs are then computed with the changed weights, so that the next layer is judged on what it will really see.
Only one layer exists in float32 at a time. Everything is computed sample by sample in a fixed order.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from edgevlm.calibration.activations import Activations
from edgevlm.calibration.answers import answer_rows
from edgevlm.models.decoder import Decoder, DecoderLayer, SwiGLU
from edgevlm.models.footprint import release
from edgevlm.models.token_drop import Passage, Prompt, kept_places

#: Called with the index of a layer, of a sample, and that sample's states in front of and behind the layer, `[S, H]`.
Watch: TypeAlias = Callable[[int, int, Tensor, Tensor], None]


class Statistic(Protocol):
    """What is collected of a linear layer's inputs."""

    def add(self, rows: Tensor) -> None:
        """Count rows `[S, C]`."""


StatisticT = TypeVar("StatisticT", bound=Statistic)


@dataclass(frozen=True)
class LayerStep:
    """One layer, in float32, and the hidden states in front of it.

    Attributes:
        index: which one.
        layer: a copy that may be changed.
        activations: in front of the layer.
    """

    index: int
    layer: DecoderLayer
    activations: Activations

    def outputs(self, sample: int) -> Tensor:
        """Hidden states `[S, H]` of a sample behind the layer as it is now."""
        states = self.activations.states[sample][None]
        result: Tensor = self.layer(states, self.activations.rotary(sample), None, None)[0][0]
        return result

    def linear(self, name: str) -> nn.Linear:
        """The layer's linear module of this name."""
        module = self.layer.get_submodule(name)
        assert isinstance(module, nn.Linear)
        return module

    @torch.no_grad()
    def collect(
        self, make: Callable[[int], StatisticT], tokens: Sequence[Tensor] | None = None
    ) -> dict[str, StatisticT]:
        """A statistic of the inputs of each linear module, by its name; modules with one input share one.

        Args:
            make: a fresh statistic for so many channels.
            tokens: of each sample the positions to count; None counts all.
        """
        current = 0
        with self.watched(make, lambda rows: rows if tokens is None else rows[tokens[current]]) as found:
            for current in range(len(self.activations)):
                self.outputs(current)
        return found

    @contextmanager
    def watched(
        self, make: Callable[[int], StatisticT], counted: Callable[[Tensor], Tensor] = lambda rows: rows
    ) -> Iterator[dict[str, StatisticT]]:
        """As `collect`, of whatever runs through the layer meanwhile, one sample at a time.

        Args:
            make: a fresh statistic for so many channels.
            counted: of a sample's rows `[S, C]` those to count.
        """
        found: dict[str, StatisticT] = {}
        handles = []

        def hook(statistic: StatisticT) -> Callable[[nn.Module, tuple[Tensor]], None]:
            return lambda _module, inputs: statistic.add(counted(inputs[0][0]))

        for group in linear_groups(self.layer):
            first = self.linear(group[0])
            statistic = make(first.in_features)
            found |= dict.fromkeys(group, statistic)
            handles.append(first.register_forward_pre_hook(hook(statistic)))
        try:
            yield found
        finally:
            for handle in handles:
                handle.remove()


def linear_groups(layer: DecoderLayer) -> list[tuple[str, ...]]:
    """Names of the layer's linear modules in the order of computation, those with the same input together."""
    attention: tuple[str, ...] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    gated = isinstance(layer.mlp, SwiGLU)
    into: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj") if gated else ("mlp.fc1",)
    out = "mlp.down_proj" if gated else "mlp.fc2"
    if layer.parallel:
        return [attention + into, ("self_attn.o_proj",), (out,)]
    return [attention, ("self_attn.o_proj",), into, (out,)]


def float_layer(decoder: Decoder, index: int) -> DecoderLayer:
    """A float32 copy of a layer; what was read of the stored one is let go of."""
    stored = decoder.layers[index]
    layer = copy.deepcopy(stored).float()
    assert isinstance(layer, DecoderLayer)
    release(stored)
    return layer


def walk(
    decoder: Decoder, activations: Activations, watch: Watch | None = None, layers: Iterable[int] | None = None
) -> Iterator[LayerStep]:
    """Each layer in turn; afterwards `activations` hold the states behind the last.

    Args:
        decoder: its own weights stay as they are.
        activations: in front of the first layer.
        watch: sees each sample's states in front of and behind each layer.
        layers: which to go through, in this order; None for all.
    """
    for index in range(len(decoder.layers)) if layers is None else layers:
        step = LayerStep(index, float_layer(decoder, index), activations)
        yield step
        advance(step, decoder, watch)


def run_through(
    decoder: Decoder, activations: Activations, watch: Watch | None = None, layers: Iterable[int] | None = None
) -> None:
    """As `walk`, changing nothing on the way."""
    for _ in walk(decoder, activations, watch, layers):
        pass


@torch.no_grad()
def advance(step: LayerStep, decoder: Decoder, watch: Watch | None = None) -> None:
    """Replace the states in front of a layer by those behind it; of image tokens, those that the decoder lets go on."""
    drop = decoder.spec.token_drop
    stage = drop.stage_behind(step.index) if drop else None
    norm = copy.deepcopy(decoder.norm).float()
    activations = step.activations
    for sample, (states, sequence) in enumerate(zip(activations.states, activations.sequences, strict=True)):
        rotary = activations.rotary(sample)
        outputs, (keys, _) = step.layer(states[None], rotary, None, None)
        if watch is not None:
            watch(step.index, sample, states, outputs[0])
        if drop is None or stage is None:
            states.copy_(outputs[0])
        else:
            prompt = Prompt(sequence.starts, int(answer_rows(sequence)[0]), len(states))
            passage = Passage(states[None], outputs, rotary, keys)
            places = kept_places(drop, stage, step.layer, norm, passage, prompt)
            activations.keep(sample, outputs[0], places, prompt.behind(drop, stage).starts)
