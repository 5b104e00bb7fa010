"""`scheme: auto`: which scheme each decoder layer and the tables get, so that a budget buys the best answers.

In: a model, calibration samples, a budget. Out: a scheme for each part, as a recipe can write it, so that another run
need not search. The loss of a part is the KL divergence of the answers from the original's when it alone is quantized
(by GPTQ, as it will be), on samples from all over the calibration data; `edgevlm.quant.budget` picks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from edgevlm.calibration import Calibration
from edgevlm.calibration.activations import Activations, embed
from edgevlm.calibration.answers import divergence, right_answers
from edgevlm.calibration.layers import LayerStep, advance, float_layer, run_through
from edgevlm.calibration.moments import layer_moments
from edgevlm.calibration.scratch import Scratch
from edgevlm.errors import InputError
from edgevlm.models.decoder import Decoder, DecoderLayer
from edgevlm.models.rebuild import with_decoder
from edgevlm.models.vlm import VlmModel
from edgevlm.progress import Report, part_of
from edgevlm.quant import rtn
from edgevlm.quant.budget import Budget, check_size, least_loss, least_size
from edgevlm.quant.layer_codes import GptqOptions, layer_codes, scheme_for_width
from edgevlm.quant.presets import Preset, read_scheme
from edgevlm.quant.sizes import float_bytes, matrix_bytes
from edgevlm.quant.tensor import QuantizedTensor

#: Samples that losses are measured on.
SAMPLES = 32
#: Bounds between the least and the greatest loss that `accuracy_drop` tries, by halving.
_BOUNDS = 32


@dataclass(frozen=True)
class Plan:
    """A scheme for each part.

    Attributes:
        layers: of each decoder layer.
        tables: of the embedding and of a head of its own.
        kl: of the answers with all parts quantized, on the samples that losses were measured on.
        codes: of each layer, by its linear modules' names.
    """

    layers: tuple[str, ...]
    tables: str
    kl: float
    codes: Sequence[dict[str, QuantizedTensor]]


@dataclass(frozen=True)
class Weights:
    """Weights by their bytes in a file and their number."""

    bytes: int
    count: int


@dataclass
class _Parts:
    """What is known of the parts: bytes and losses of layers, then tables, and codes of each layer, all by scheme."""

    sizes: list[list[int]]
    codes: list[list[dict[str, QuantizedTensor]]] = field(default_factory=list)
    losses: list[list[float]] = field(default_factory=list)


def search(
    model: VlmModel,
    calibration: Calibration,
    budget: Budget,
    schemes: tuple[str, ...],
    others: Weights,
    options: GptqOptions,
    scratch: Scratch,
    progress: Report,
) -> Plan:
    """Choose.

    Args:
        model: left as it is.
        calibration: samples, for `accuracy_drop` with answers.
        budget: what may be spent.
        schemes: that a part may have, by the names that recipes use.
        others: weights outside the decoder.
        options: of GPTQ.
        scratch: where activations and codes lie.
        progress: called with a share of 1.

    Raises:
        InputError: no choice keeps within the budget.
    """
    presets = [read_scheme(name) for name in schemes]
    parts = _Parts(_sizes(model.decoder, presets))
    most = None
    if budget.kind in ("size", "bits"):
        weights = others.count + sum(tensor.numel() for tensor in model.decoder.parameters())
        most = check_size(budget, parts.sizes, others.bytes + float_bytes(model.decoder), weights)
    for found in layer_moments(model, calibration, scratch, part_of(progress, 0, 0.4)):
        made = [layer_codes(found, preset, options) for preset in presets]
        parts.codes.append([{name: kept(each, scratch) for name, each in codes.items()} for codes in made])
    front = embed(model, calibration, scratch, part_of(progress, 0.4, 0.5))
    trial = _Trial(model, front, scratch)
    trial.measure(parts, presets, part_of(progress, 0.5, 0.9))
    if most is not None:
        chosen = least_loss(parts.losses, parts.sizes, most)
    elif budget.kind == "kl":
        chosen = least_size(parts.losses, parts.sizes, budget.value)
    else:
        chosen = trial.within(budget.value / 100, parts, presets)
    *layers, last = (schemes[index] for index in chosen)
    codes = [parts.codes[layer][index] for layer, index in enumerate(chosen[:-1])]
    return Plan(tuple(layers), last, trial.loss(chosen, parts, presets), codes)


class _Trial:
    """Runs the decoder with some parts quantized."""

    def __init__(self, model: VlmModel, front: Activations, scratch: Scratch) -> None:
        self.model = model
        self.decoder = model.decoder
        self.fused = model.fusion is not None
        self.front = front
        self.scratch = scratch
        #: Those that losses are measured on, in front of the first layer.
        self.few = front.copy(scratch, SAMPLES)
        self.room = self.few.copy(scratch)
        self.answers = self.few.copy(scratch)
        run_through(self.decoder, self.answers)

    def measure(self, parts: _Parts, presets: Sequence[Preset], progress: Report) -> None:
        """Losses of each layer alone, then of the tables."""
        count = len(self.decoder.layers)
        here = self.few.copy(self.scratch)
        for index in range(count):
            progress(index / (count + 1), 1, f"what layer {index + 1} of {count} costs by itself")
            losses = []
            for codes in parts.codes[index]:
                self.room.restore(here)
                advance(LayerStep(index, _rounded(self.decoder, index, codes), self.room), self.decoder)
                run_through(self.decoder, self.room, layers=range(index + 1, count))
                losses.append(max(divergence(self.decoder, self.room, self.answers), 0.0))
            parts.losses.append(losses)
            run_through(self.decoder, here, layers=[index])
        progress(count / (count + 1), 1, "what the tables cost by themselves")
        parts.losses.append([])
        for preset in presets:
            self._enter(self.room, self.few, preset)
            run_through(self.decoder, self.room)
            head = self._with_head(preset)
            parts.losses[-1].append(max(divergence(self.decoder, self.room, self.answers, head), 0.0))

    def loss(self, chosen: Sequence[int], parts: _Parts, presets: Sequence[Preset]) -> float:
        """KL divergence with all parts quantized as chosen."""
        head = self._run(self.room, self.few, chosen, parts, presets)
        return max(divergence(self.decoder, self.room, self.answers, head), 0.0)

    def within(self, drop: float, parts: _Parts, presets: Sequence[Preset]) -> list[int]:
        """The smallest choice, of those along ever greater losses, whose share of right answers falls by `drop`."""
        if not any(bool((sequence.labels >= 0).any()) for sequence in self.front.sequences):
            raise InputError(
                "accuracy_drop needs calibration samples with answers",
                "quantize field 'budget'",
                "calibrate with scenes or a .jsonl file with answers, or write kl=0.01",
            )
        room = self.front.copy(self.scratch)
        run_through(self.decoder, room)
        original = right_answers(self.decoder, room)
        low, high = sum(map(min, parts.losses)), sum(map(max, parts.losses))
        bounds = torch.logspace(0, 1, _BOUNDS).sub(1).div(9).mul(high - low).add(low).tolist()
        best: list[int] | None = None
        first, last = 0, _BOUNDS - 1
        while first <= last:
            middle = (first + last) // 2
            chosen = least_size(parts.losses, parts.sizes, bounds[middle] * (1 + 1e-9) + 1e-12)
            head = self._run(room, self.front, chosen, parts, presets)
            if original - right_answers(head, room) <= drop:
                best, first = chosen, middle + 1
            else:
                last = middle - 1
        if best is None:
            raise InputError(
                "even the best schemes lose more answers than that",
                "quantize field 'budget'",
                "allow more, or calibrate with more samples",
            )
        return best

    def _run(
        self,
        room: Activations,
        front: Activations,
        chosen: Sequence[int],
        parts: _Parts,
        presets: Sequence[Preset],
    ) -> Decoder:
        """Take `room` from the samples of `front` through the chosen layers; returns a decoder with the chosen head."""
        *layers, tables = chosen
        self._enter(room, front, presets[tables])
        for index, scheme in enumerate(layers):
            layer = _rounded(self.decoder, index, parts.codes[index][scheme])
            advance(LayerStep(index, layer, room), self.decoder)
        return self._with_head(presets[tables])

    def _with_head(self, preset: Preset) -> Decoder:
        """The decoder with a rounded head."""
        name = "embed_tokens.weight" if self.decoder.spec.tied_embeddings else "lm_head.weight"
        stored = self.decoder.get_parameter(name)
        rounded = _nearest(stored.detach(), preset).to(stored.dtype)
        return with_decoder(self.model, self.decoder.spec, {name: rounded}).decoder

    def _enter(self, room: Activations, front: Activations, preset: Preset) -> None:
        """Copy states, those of text as the rounded embedding gives them."""
        room.restore(front)
        if self.fused:
            return
        for states, sequence in zip(room.states, room.sequences, strict=True):
            text = ~sequence.is_image
            states[text] = _nearest(states[text], preset)


def _rounded(decoder: Decoder, index: int, codes: dict[str, QuantizedTensor]) -> DecoderLayer:
    """A float32 copy of a layer with what its codes stand for."""
    layer = float_layer(decoder, index)
    for name, tensor in codes.items():
        layer.get_parameter(f"{name}.weight").data.copy_(torch.from_numpy(tensor.dequantize()))
    return layer


def _nearest(rows: Tensor, preset: Preset) -> Tensor:
    """Rows of a table on the scheme's grid (llama.cpp, which writes those of GGUF, rounds a few to the next code)."""
    scheme = scheme_for_width(replace(preset, algorithm="rtn"), rows.shape[1])
    return torch.from_numpy(rtn.quantize(rows, scheme).dequantize())


def _sizes(decoder: Decoder, presets: Sequence[Preset]) -> list[list[int]]:
    """Bytes of each layer's matrices, then of the tables, by scheme."""

    def size(shapes: Sequence[torch.Size], preset: Preset) -> int:
        return sum(matrix_bytes(rows, width, scheme_for_width(preset, width)) for rows, width in shapes)

    tables = ["embed_tokens.weight", *([] if decoder.spec.tied_embeddings else ["lm_head.weight"])]
    shapes = [[tensor.shape for tensor in layer.parameters() if tensor.ndim == 2] for layer in decoder.layers]
    shapes.append([decoder.get_parameter(name).shape for name in tables])
    return [[size(part, preset) for preset in presets] for part in shapes]


def kept(tensor: QuantizedTensor, scratch: Scratch) -> QuantizedTensor:
    """The same, and the codes may lie on disk."""
    return replace(tensor, codes=scratch.keep(torch.from_numpy(tensor.codes)).numpy())
