"""What TAMP and ECoFLaP measure, against slow statements of it: all pairs, whole attention, automatic gradients."""

import copy
from itertools import combinations, product

import numpy as np
import pytest
import torch
from decoders import DECODERS
from onnx_models import make_decoder
from torch.nn import functional as F

from edgevlm.calibration.activations import IGNORE, Activations, Sequence
from edgevlm.calibration.layers import linear_groups, walk
from edgevlm.calibration.scratch import Scratch
from edgevlm.models.decoder import Decoder, DecoderLayer
from edgevlm.pruning.weights import ecoflap, tamp

LENGTHS = (9, 7)


def activations(decoder: Decoder, answered: bool = True) -> Activations:
    """The first five positions are an image, the last two answer."""
    generator = torch.Generator().manual_seed(1)
    sequences = []
    for length in LENGTHS:
        labels = torch.full((length,), IGNORE)
        if answered:
            labels[-2:] = torch.tensor([3, 8])
        sequences.append(Sequence(torch.arange(length)[None], torch.arange(length) < 5, labels))
    states = [torch.randn(length, decoder.spec.hidden_size, generator=generator) for length in LENGTHS]
    return Activations(decoder.spec, states, sequences)


def test_diversity_is_the_mean_over_all_pairs() -> None:
    states = torch.randn(9, 6, generator=torch.Generator().manual_seed(2))
    is_image = torch.arange(9) < 5

    def distance(i: int, j: int) -> float:
        return 1 - float(F.cosine_similarity(states[i], states[j], dim=0))

    kinds = [
        [distance(i, j) for i, j in combinations(range(5), 2)],
        [distance(i, j) for i, j in combinations(range(5, 9), 2)],
        [distance(i, j) for i, j in product(range(5), range(5, 9))],
    ]
    expected = float(np.mean([np.mean(kind) for kind in kinds]))
    assert tamp.diversity(states, is_image) == pytest.approx(expected, abs=1e-6)
    assert tamp.diversity(states[:5], is_image[:5]) == pytest.approx(float(np.mean(kinds[0])), abs=1e-6)


@torch.no_grad()
def test_layer_scores_are_of_what_leaves_each_layer() -> None:
    decoder = make_decoder(DECODERS["qwen2"])
    start = activations(decoder)
    expected = []
    states = [rows.clone() for rows in start.states]
    for layer in decoder.layers:
        states = [layer(x[None], start.rotary(i), None, None)[0][0] for i, x in enumerate(states)]
        expected.append(np.mean([tamp.diversity(x, s.is_image) for x, s in zip(states, start.sequences, strict=True)]))
    assert tamp.layer_scores(decoder, start) == pytest.approx(expected)


@pytest.mark.parametrize("kind", DECODERS)
@torch.no_grad()
def test_the_last_row_is_that_of_whole_attention(kind: str) -> None:
    """Values of the layer replaced by unit vectors, so that attention's output is its probabilities."""
    decoder = make_decoder(DECODERS[kind])
    start = activations(decoder)
    step = next(walk(decoder, start))
    states, spec = start.states[0], decoder.spec
    seen = {}

    def capture(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **_: object) -> torch.Tensor:
        key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
        scores = (query @ key.transpose(2, 3) / spec.head_dim**0.5)[0]
        mask = torch.ones(len(states), len(states)).tril() == 0
        seen["row"] = scores.masked_fill(mask, -torch.inf).softmax(-1)[:, -1].mean(0)
        return real(query, key, value.repeat_interleave(query.shape[1] // value.shape[1], dim=1), is_causal=True)

    real = F.scaled_dot_product_attention
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", capture)
        step.outputs(0)
    np.testing.assert_allclose(tamp.last_row(step, states, start.rotary(0)), seen["row"], atol=1e-5)


def test_the_core_set_holds_what_is_attended_to_and_one_of_twins() -> None:
    """Three bundles of near-identical tokens: choices come from all bundles, the best attended among them."""
    generator = torch.Generator().manual_seed(3)
    centres = torch.eye(3, 16)
    states = torch.cat([centre + 0.01 * torch.randn(6, 16, generator=generator) for centre in centres])
    attention = torch.full((18,), 0.01)
    attention[[2, 8, 14]] = torch.tensor([0.5, 0.3, 0.2])
    chosen = tamp.choose_tokens(attention, states).tolist()
    assert {index // 6 for index in chosen} == {0, 1, 2}
    assert 2 in chosen
    assert len(chosen) < 9
    assert chosen == sorted(chosen)
    assert tamp.choose_tokens(attention[:3], states[:3]).tolist() == [0, 1, 2]


def gradient_scores(decoder: Decoder, start: Activations, labels: list[torch.Tensor], seed: int) -> list[float]:
    """|gradient . z| of each layer by automatic differentiation, mean over the samples."""
    scores = []
    for index, layer in enumerate(decoder.layers):
        assert isinstance(layer, DecoderLayer)
        names = [f"layers.{index}.{name}.weight" for group in linear_groups(layer) for name in group]
        generator = torch.Generator().manual_seed(seed + index)
        directions = [torch.randn(decoder.get_parameter(name).shape, generator=generator) for name in names]
        slopes = []
        for states, sequence, wanted in zip(start.states, start.sequences, labels, strict=True):
            twin = copy.deepcopy(decoder).double().requires_grad_(True)
            logits, _ = twin(states[None].double(), sequence.positions)
            loss = F.cross_entropy(logits[0, -len(wanted) :], wanted)
            gradients = torch.autograd.grad(loss, [twin.get_parameter(name) for name in names])
            slopes.append(abs(sum(float((g * z).sum()) for g, z in zip(gradients, directions, strict=True))))
        scores.append(float(np.mean(slopes)))
    return scores


@pytest.mark.parametrize("answered", [True, False])
def test_zeroth_order_scores_are_directional_derivatives(answered: bool) -> None:
    decoder = make_decoder(DECODERS["llama"])
    start = activations(decoder, answered)
    with torch.no_grad():
        likeliest = [
            decoder(states[None], sequence.positions)[0][0, -1:].argmax(1)
            for states, sequence in zip(start.states, start.sequences, strict=True)
        ]
    labels = [torch.tensor([3, 8])] * 2 if answered else likeliest
    expected = gradient_scores(decoder, start, labels, seed=5)
    found = ecoflap.layer_scores(decoder, start, Scratch(1 << 30), 5, lambda *_: None)
    np.testing.assert_allclose(found, expected, rtol=0.02)
