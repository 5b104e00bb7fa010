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
