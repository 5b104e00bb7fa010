"""The walk through the decoder's layers: what passes see, and what a changed layer makes of the next one's inputs."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from decoders import DECODERS
from onnx_models import make_decoder
from torch import Tensor, nn

from edgevlm.calibration.activations import IGNORE, Activations, Sequence
from edgevlm.calibration.layers import linear_groups, walk
from edgevlm.calibration.scratch import Scratch
from edgevlm.calibration.statistics import SecondMoments, SquaredNorms, relative_error
from edgevlm.models.decoder import Decoder
from edgevlm.spec import DropStage, TokenDropSpec

LENGTHS = (5, 9, 3)


def activations(decoder: Decoder, seed: int = 0) -> Activations:
    generator = torch.Generator().manual_seed(seed)
    states = [torch.randn(length, decoder.spec.hidden_size, generator=generator) for length in LENGTHS]
    none = torch.empty(0)
    return Activations(decoder.spec, states, [Sequence(torch.arange(n)[None], none, none) for n in LENGTHS])


def inputs_of(decoder: Decoder, states: list[Tensor]) -> dict[str, Tensor]:
    """What each linear module sees when the decoder runs whole, by hooks of this test."""
    seen: dict[str, list[Tensor]] = {}
    handles = [
        module.register_forward_pre_hook(lambda _, args, name=name: seen.setdefault(name, []).append(args[0][0]))
        for name, module in decoder.named_modules()
        if isinstance(module, nn.Linear)
    ]
    for rows in states:
        decoder(rows[None], torch.arange(len(rows))[None])
    for handle in handles:
        handle.remove()
    return {name: torch.cat(rows) for name, rows in seen.items()}


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.mark.parametrize("kind", DECODERS)
def test_statistics_are_those_of_the_decoder_run_whole(kind: str) -> None:
    """Every linear module of every layer, each in its group, in weights that are stored in bfloat16."""
    decoder = make_decoder(DECODERS[kind]).bfloat16()
    whole = make_decoder(DECODERS[kind])
    whole.load_state_dict(decoder.float().state_dict())
    decoder = decoder.bfloat16()
    start = activations(decoder)
    expected = inputs_of(whole, [rows.clone() for rows in start.states])
    names = set()
    for step in walk(decoder, start):
        norms, moments = step.collect(SquaredNorms), step.collect(SecondMoments)
        assert norms.keys() == {n for n, m in step.layer.named_modules() if isinstance(m, nn.Linear)}
        for name in norms:
            rows = expected[f"layers.{step.index}.{name}"].double()
            names.add(f"layers.{step.index}.{name}")
            np.testing.assert_allclose(norms[name].mean, rows.square().mean(0), rtol=1e-4)
            np.testing.assert_allclose(moments[name].mean, rows.T @ rows / len(rows), rtol=1e-3, atol=1e-4)
        for group in linear_groups(step.layer):
            assert len({id(norms[name]) for name in group}) == 1
    assert names == {name for name in expected if name.startswith("layers.")}


def test_the_next_layer_sees_the_changed_one() -> None:
    """Outputs are computed again after the caller changed the layer; the decoder itself stays as it is."""
    decoder = make_decoder(DECODERS["qwen2"])
    stored = {name: value.clone() for name, value in decoder.state_dict().items()}
    changed = make_decoder(DECODERS["qwen2"])
    for layer in changed.layers:
        layer.mlp.down_proj.weight.mul_(0.5)
    start = activations(decoder)
    expected = inputs_of(changed, [rows.clone() for rows in start.states])
    for step in walk(decoder, start):
        step.linear("mlp.down_proj").weight.mul_(0.5)
        norms = step.collect(SquaredNorms)
        rows = expected[f"layers.{step.index}.self_attn.q_proj"].double()
        np.testing.assert_allclose(norms["self_attn.q_proj"].mean, rows.square().mean(0), rtol=1e-4)
    assert all(torch.equal(value, stored[name]) for name, value in decoder.state_dict().items())


def test_only_the_chosen_positions_are_counted() -> None:
    decoder = make_decoder(DECODERS["llama"])
    start = activations(decoder)
    expected = inputs_of(decoder, [rows.clone() for rows in start.states])["layers.0.mlp.up_proj"]
    chosen = [torch.tensor([0, 4]), torch.tensor([2]), torch.tensor([1, 2])]
    step = next(walk(decoder, start))
    found = step.collect(SquaredNorms, chosen)["mlp.up_proj"]
    offsets = np.cumsum([0, *LENGTHS])
    rows = torch.cat([expected[offset + index] for offset, index in zip(offsets, chosen, strict=False)])
    assert found.rows == 5
    np.testing.assert_allclose(found.mean, rows.square().mean(0), rtol=1e-5)


def test_the_watch_sees_every_sample_of_every_layer() -> None:
    decoder, seen = make_decoder(DECODERS["phi2"]), []

    def watch(layer: int, sample: int, before: Tensor, after: Tensor) -> None:
        seen.append((layer, sample, before.clone(), after.clone()))

    for _ in walk(decoder, activations(decoder), watch):
        pass
    assert [(layer, sample) for layer, sample, _, _ in seen] == [(i, j) for i in range(2) for j in range(3)]
    assert all(torch.equal(seen[j][3], seen[3 + j][2]) for j in range(3))


def test_relative_error_is_that_of_the_outputs() -> None:
    generator = torch.Generator().manual_seed(3)
    rows, weight, other = (torch.randn(shape, generator=generator) for shape in ((50, 8), (4, 8), (4, 8)))
    moments = SecondMoments(8)
    moments.add(rows[:20])
    moments.add(rows[20:])
    outputs, error = rows @ weight.T, rows @ (weight - other).T
    expected = float(error.square().sum() / outputs.square().sum())
    assert relative_error(weight - other, weight, moments.mean) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("score", ["attention", "duplicate"])
def test_image_tokens_that_the_decoder_drops_are_not_seen_behind(score: str) -> None:
    """As the decoder itself runs: two images of four tokens, of which two go on behind the first layer."""
    drop = TokenDropSpec("drop", score, 4, (DropStage(1, 2),), image_pivots=1, text_pivots=1)  # type: ignore[arg-type]
    decoder = make_decoder(replace(DECODERS["qwen2"], token_drop=drop))
    states = torch.randn(14, decoder.spec.hidden_size, generator=torch.Generator().manual_seed(4))
    is_image = torch.tensor([index in range(1, 5) or index in range(6, 10) for index in range(14)])
    labels = torch.full((14,), IGNORE)
    labels[12:] = torch.tensor([7, 9])
    sequence = Sequence(torch.arange(14)[None], is_image, labels, (1, 6))
    start = Activations(decoder.spec, [states.clone()], [sequence])
    room = start.copy(Scratch(1 << 20))
    seen = [len(step.collect(SquaredNorms)["mlp.up_proj"].total) and step.activations.states[0].shape[0]
            for step in walk(decoder, start)]  # fmt: skip
    assert seen == [14, 10]
    # The answer's first token is no part of the prompt, which ends where the label of that token stands.
    prompt, _ = decoder(states[None, :13], torch.arange(13)[None], image_starts=(1, 6))
    found = decoder.head(decoder.norm(start.states[0]))
    np.testing.assert_allclose(found[:9], prompt[0], atol=1e-4)
    assert start.sequences[0].starts == (1, 4)
    assert start.sequences[0].labels.tolist()[-2:] == [7, 9]
    assert int(start.sequences[0].is_image.sum()) == 4
    start.restore(room)
    assert torch.equal(start.states[0], states)
    assert start.sequences[0].starts == (1, 6)
