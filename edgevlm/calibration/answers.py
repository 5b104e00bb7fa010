"""What a decoder answers at the positions that matter, from hidden states behind its last layer.

These are the positions whose next token belongs to a sample's answer; of a sample without one, the end of its prompt.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from edgevlm import reference
from edgevlm.calibration.activations import IGNORE, Activations, Sequence
from edgevlm.models.decoder import Decoder


def answer_rows(sequence: Sequence) -> Tensor:
    """Positions int64 `[P]`, at least one."""
    known = (sequence.labels != IGNORE).nonzero()[:, 0]
    return known if len(known) else torch.tensor([len(sequence.labels) - 1])


def answer_states(decoder: Decoder, activations: Activations, sample: int) -> Tensor:
    """float32 states `[P, H]` at a sample's `answer_rows`, behind the last norm."""
    rows = activations.states[sample][answer_rows(activations.sequences[sample])]
    normed: Tensor = copy.deepcopy(decoder.norm).float()(rows)
    return normed


def answer_logits(decoder: Decoder, activations: Activations, sample: int) -> Tensor:
    """float32 logits `[P, V]` at a sample's `answer_rows`."""
    return reference.head_logits(decoder, answer_states(decoder, activations, sample))


def divergence(
    decoder: Decoder, changed: Activations, answers: Activations, changed_decoder: Decoder | None = None
) -> float:
    """Mean KL divergence in nats of the next tokens' distributions from the original's, at the answers' positions.

    Args:
        decoder: whose norm and head make distributions of states.
        changed: states behind the last layer of the changed model.
        answers: states behind the last layer of the original.
        changed_decoder: whose norm and head do it for the changed model; None where both share them.
    """
    total, count = 0.0, 0
    for sample in range(len(answers)):
        expected = answer_logits(decoder, answers, sample).double().log_softmax(1)
        found = answer_logits(changed_decoder or decoder, changed, sample).double().log_softmax(1)
        total += float((expected.exp() * (expected - found)).sum())
        count += len(expected)
    return total / count


def right_answers(decoder: Decoder, activations: Activations) -> float:
    """Share of the samples with a known answer whose every token is the likeliest; 0 where no answer is known.

    Args:
        decoder: whose norm and head make distributions of states.
        activations: states behind the last layer.
    """
    right = known = 0
    for sample, sequence in enumerate(activations.sequences):
        labels = sequence.labels[sequence.labels != IGNORE]
        if len(labels):
            known += 1
            right += bool((answer_logits(decoder, activations, sample).argmax(1) == labels).all())
    return right / max(known, 1)
