"""ECoFLaP's first stage (arXiv 2310.02998): which layers matter, from losses alone, without gradients.

Each layer's linear weights are moved a little along a random direction z and against it; its score is the mean over the
samples of |L(W + ez) - L(W - ez)| / 2e. The loss is the cross-entropy of a sample's answer; where nobody knows it, of
the token that the model itself holds likeliest after the prompt.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from torch.nn import functional as F

from edgevlm.calibration.activations import IGNORE, Activations
from edgevlm.calibration.answers import answer_logits
from edgevlm.calibration.layers import LayerStep, advance, linear_groups, run_through, walk
from edgevlm.calibration.scratch import Scratch
from edgevlm.models.decoder import Decoder, DecoderLayer
from edgevlm.progress import Report

EPSILON = 1e-3
#: Samples that are enough for an order of layers: each costs two passes through half of the decoder for every layer.
SAMPLES = 16


@torch.no_grad()
def layer_scores(
    decoder: Decoder, activations: Activations, scratch: Scratch, seed: int, progress: Report
) -> list[float]:
    """Importance of each layer; the activations are used up.

    Args:
        decoder: in any float dtype.
        activations: in front of the first layer; a few samples.
        scratch: room for copies of the hidden states.
        seed: of the directions.
        progress: called with layers done, layers in all.
    """
    labels = _labels(decoder, activations.copy(scratch))
    room = activations.copy(scratch)
    scores = []
    for step in walk(decoder, activations):
        progress(step.index, len(decoder.layers), f"sensitivity of layer {step.index + 1} of {len(decoder.layers)}")
        up, down = (_losses(decoder, step, room, labels, seed, sign) for sign in (1, -1))
        scores.append(float((up - down).abs().mean()) / (2 * EPSILON))
    return scores


def _labels(decoder: Decoder, activations: Activations) -> list[Tensor]:
    """The tokens at each sample's `answer_rows`."""
    run_through(decoder, activations)
    found = []
    for index, sequence in enumerate(activations.sequences):
        given = sequence.labels[sequence.labels != IGNORE]
        found.append(given if len(given) else answer_logits(decoder, activations, index).argmax(dim=1))
    return found


def _losses(decoder: Decoder, step: LayerStep, room: Activations, labels: list[Tensor], seed: int, sign: int) -> Tensor:
    """Loss of each sample, float64, with one layer moved; `room` is overwritten."""
    room.restore(step.activations)
    advance(LayerStep(step.index, _moved(step.layer, seed + step.index, sign), room), decoder)
    run_through(decoder, room, layers=range(step.index + 1, len(decoder.layers)))
    losses = [
        F.cross_entropy(answer_logits(decoder, room, sample).double(), wanted) for sample, wanted in enumerate(labels)
    ]
    return torch.stack(losses)


def _moved(layer: DecoderLayer, seed: int, sign: int) -> DecoderLayer:
    """A copy of the layer whose linear weights lie one step along their random direction, or against it."""
    generator = torch.Generator().manual_seed(seed)
    moved = copy.deepcopy(layer)
    for name in (name for group in linear_groups(layer) for name in group):
        weight = moved.get_parameter(f"{name}.weight")
        weight.add_(torch.randn(weight.shape, generator=generator), alpha=sign * EPSILON)
    return moved
