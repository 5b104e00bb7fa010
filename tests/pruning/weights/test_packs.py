"""Samples about one image in one row compute what each computes alone."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from decoders import DECODERS
from onnx_models import make_decoder

from edgevlm.calibration.activations import IGNORE, Activations, Sequence
from edgevlm.models.decoder import Decoder, rotary_for
from edgevlm.pruning.weights.packs import groups_of, pack
from edgevlm.pruning.weights.student import Student

#: Positions of each sample: one of text, then the image, then the question.
LENGTHS, IMAGE = (9, 7, 12, 8), 4


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def activations(decoder: Decoder) -> Activations:
    """The first three ask about one image, the last about another."""
    generator = torch.Generator().manual_seed(0)
    images = [torch.randn(1 + IMAGE, decoder.spec.hidden_size, generator=generator) for _ in range(2)]
    states, sequences = [], []
    for index, length in enumerate(LENGTHS):
        rest = torch.randn(length - 1 - IMAGE, decoder.spec.hidden_size, generator=generator)
        states.append(torch.cat((images[index // 3], rest)))
        is_image = (torch.arange(length) > 0) & (torch.arange(length) <= IMAGE)
        sequences.append(Sequence(torch.arange(length)[None], is_image, torch.full((length,), IGNORE)))
    return Activations(decoder.spec, states, sequences)


def test_neighbours_with_one_image_are_a_group() -> None:
    start = activations(make_decoder(DECODERS["qwen2"]))
    assert groups_of(start) == [[0, 1, 2], [3]]
    start.states[1][2] += 1
    assert groups_of(start) == [[0], [1], [2], [3]]


@pytest.mark.parametrize("kind", DECODERS)
def test_each_sample_is_computed_as_on_its_own(kind: str) -> None:
    decoder = make_decoder(DECODERS[kind])
    start, student = activations(decoder), Student(decoder, None, 0)
    packed = pack(start, groups_of(start))
    states = packed.fill(start.states)
    assert states.shape[:2] == (2, 1 + IMAGE + sum(length - 1 - IMAGE for length in LENGTHS[:3]))
    outputs = student(states, rotary_for(decoder.spec, packed.positions), packed.mask)[-1]
    for sample, row, places in zip(packed.samples, packed.rows, packed.places, strict=True):
        alone = student(start.states[sample][None], start.rotary(sample))[-1][0]
        np.testing.assert_allclose(outputs[row, places], alone, atol=1e-4)
    assert int(packed.valid.sum()) == states.shape[1] + LENGTHS[3]


def test_samples_without_an_image_share_nothing() -> None:
    start = activations(make_decoder(DECODERS["llama"]))
    for sequence in start.sequences:
        sequence.is_image[:] = False
    assert groups_of(start) == [[0], [1], [2], [3]]
    assert pack(start, [[2]]).mask[0, 0].tolist() == torch.ones(12, 12).tril().bool().tolist()
