"""Passes that take whole layers and channels away: what is dropped, that nothing else changes, and what it costs."""

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from pruned_models import logits_of, run, scenes, states_of
from specs import TINY
from torch.nn import functional as F

from edgevlm.calibration import Calibration
from edgevlm.calibration.layers import walk
from edgevlm.calibration.statistics import SecondMoments, relative_error
from edgevlm.errors import InputError
from edgevlm.models import VlmModel, load, resolve
from edgevlm.models.rebuild import with_decoder
from edgevlm.pruning.weights.ffn_width import FfnWidth, refit
from edgevlm.pruning.weights.shortgpt import ShortGpt, block_influence
from edgevlm.zoo.synth import synth


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    return scenes(6)


@pytest.fixture(scope="module")
def nano() -> VlmModel:
    return load(resolve("zoo:nano-fastvlm"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> VlmModel:
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    synth("fastvlm-0.5b", folder, tiny=True, resolution=128)
    return load(folder)


@torch.no_grad()
def test_block_influence_by_hand(nano: VlmModel, calibration: Calibration) -> None:
    activations = states_of(nano, calibration)
    decoder, cosines = copy.deepcopy(nano.decoder).float(), []
    states = [rows.clone() for rows in activations.states]
    for layer in decoder.layers:
        after = [layer(x[None], activations.rotary(i), None, None)[0][0] for i, x in enumerate(states)]
        cosines.append(torch.cat([F.cosine_similarity(a, b, dim=1) for a, b in zip(states, after, strict=True)]))
        states = after
    expected = [1 - float(values.mean()) for values in cosines]
    assert block_influence(nano.decoder, activations) == pytest.approx(expected, abs=1e-5)


def test_an_idle_layer_is_the_one_that_goes(nano: VlmModel, calibration: Calibration) -> None:
    """A layer that adds next to nothing is dropped, the layers behind it move up, and the answers stay."""
    idle = {
        name: nano.decoder.state_dict()[name] * 1e-3
        for name in ("layers.2.self_attn.o_proj.weight", "layers.2.mlp.down_proj.weight")
    }
    model = with_decoder(nano, nano.spec.decoder, idle)
    model = dataclasses.replace(
        model, provenance={f"decoder.layers.{i}.input_layernorm.weight": str(i) for i in range(4)}
    )
    short = run(ShortGpt, model, calibration, layers=1)
    assert short.spec.decoder.num_hidden_layers == len(short.decoder.layers) == 3
    assert "1 of 4 decoder layers dropped (counted from 0: 2)" in short.spec.notes[-1]
    expected = {f"decoder.layers.{new}.input_layernorm.weight": str(old) for new, old in enumerate((0, 1, 3))}
    assert short.provenance == expected
    old, new = model.decoder.state_dict(), short.decoder.state_dict()
    assert torch.equal(new["layers.2.mlp.up_proj.weight"], old["layers.3.mlp.up_proj.weight"])
    for a, b in zip(logits_of(model, calibration), logits_of(short, calibration), strict=True):
        np.testing.assert_allclose(a, b, atol=0.15)


def test_as_many_layers_go_as_the_bound_allows(nano: VlmModel, calibration: Calibration) -> None:
    """The KL in the note is that of the distributions at the answers, computed here from whole logits."""
    idle = {f"layers.{i}.{n}.weight": nano.decoder.get_parameter(f"layers.{i}.{n}.weight") * 1e-3
            for i in (1, 2) for n in ("self_attn.o_proj", "mlp.down_proj")}  # fmt: skip
    model = with_decoder(nano, nano.spec.decoder, idle)
    short = run(ShortGpt, model, calibration, kl=0.01)
    assert short.spec.decoder.num_hidden_layers == 2
    stated = float(short.spec.notes[-1].split()[-1])
    total, count = 0.0, 0
    sequences = states_of(model, calibration).sequences
    for before, after, sequence in zip(
        logits_of(model, calibration), logits_of(short, calibration), sequences, strict=True
    ):
        at = sequence.labels >= 0
        p, q = before[at].double().log_softmax(1), after[at].double().log_softmax(1)
        total += float(F.kl_div(q, p, reduction="sum", log_target=True))
        count += int(at.sum())
    assert stated == pytest.approx(total / count, abs=1e-3)
    assert stated <= 0.01


def test_answers_choose_other_layers_than_influence(nano: VlmModel, calibration: Calibration) -> None:
    """Every layer and then every second one is tried here by hand; by influence another layer would go."""
    original = logits_of(nano, calibration)
    at = [sequence.labels >= 0 for sequence in states_of(nano, calibration).sequences]

    def cost(gone: set[int]) -> float:
        kept = [layer for layer in range(4) if layer not in gone]
        shorter = with_decoder(nano, dataclasses.replace(nano.spec.decoder, num_hidden_layers=len(kept)), {}, kept)
        pairs = zip(logits_of(shorter, calibration), original, at, strict=True)
        found = [(q[rows].double().log_softmax(1), p[rows].double().log_softmax(1)) for q, p, rows in pairs]
        total = sum(float(F.kl_div(q, p, reduction="sum", log_target=True)) for q, p in found)
        return total / sum(len(q) for q, _ in found)

    first = min(range(4), key=lambda layer: cost({layer}))
    second = min(set(range(4)) - {first}, key=lambda layer: cost({first, layer}))
    one, two = (run(ShortGpt, nano, calibration, layers=count, by="answers") for count in (1, 2))
    assert set(range(4)) - set(one.decoder.origins) == {first}
    assert set(range(4)) - set(two.decoder.origins) == {first, second}
    assert float(one.spec.notes[-1].split()[-1]) == pytest.approx(cost({first}), abs=1e-3)
    bounded = run(ShortGpt, nano, calibration, kl=cost({first}) + 0.01, by="answers")
    assert bounded.decoder.origins == one.decoder.origins
    assert run(ShortGpt, nano, calibration, layers=1).decoder.origins != one.decoder.origins


def test_a_bound_that_no_layer_meets(nano: VlmModel, calibration: Calibration) -> None:
    with pytest.raises(InputError, match=r"no decoder layer can go within KL 1e-06: the least important costs \d"):
        run(ShortGpt, nano, calibration, kl=1e-6)


def test_more_layers_than_there_are() -> None:
    made = ShortGpt(ShortGpt.Config(layers=2), 0)
    assert made.applies_to(TINY) == "it has 2 layers, 2 cannot go"
    assert ShortGpt(ShortGpt.Config(layers=1), 0).planned(TINY).decoder.num_hidden_layers == 1


def test_channels_that_nobody_reads_go_without_loss(tiny: VlmModel, calibration: Calibration) -> None:
    """A random half of the channels of each layer is not read; the answers stay as they were."""
    decoder, generator = tiny.decoder, torch.Generator().manual_seed(0)
    half = tiny.spec.decoder.intermediate_size // 2
    changed = {}
    for index in range(len(decoder.layers)):
        name = f"layers.{index}.mlp.down_proj.weight"
        changed[name] = decoder.get_parameter(name).clone()
        changed[name][:, torch.randperm(2 * half, generator=generator)[:half]] = 0
    model = with_decoder(tiny, tiny.spec.decoder, changed)
    narrow = run(FfnWidth, model, calibration, width=half)
    assert narrow.spec.decoder.intermediate_size == half
    assert narrow.decoder.layers[0].mlp.up_proj.weight.shape == (half, tiny.spec.decoder.hidden_size)
    assert narrow.spec.notes[-1] == f"ffn_width: {half} of {2 * half} channels of each MLP are kept"
    for a, b in zip(logits_of(model, calibration), logits_of(narrow, calibration), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-2)


@torch.no_grad()
def test_refitted_weights_reconstruct_better(nano: VlmModel, calibration: Calibration) -> None:
    """Against the channels merely left out, and against numpy's least squares, on real activations."""
    step = next(walk(nano.decoder, states_of(nano, calibration)))
    rows: list[torch.Tensor] = []
    handle = step.linear("mlp.down_proj").register_forward_pre_hook(lambda _, args: rows.append(args[0][0]))
    moments = step.collect(SecondMoments)["mlp.down_proj"].mean
    handle.remove()
    inputs, weight = torch.cat(rows), step.linear("mlp.down_proj").weight
    kept = torch.arange(0, weight.shape[1], 2)

    def error(part: torch.Tensor) -> float:
        whole = torch.zeros_like(weight)
        whole[:, kept] = part
        return relative_error(weight - whole, weight, moments)

    best = np.linalg.lstsq(inputs[:, kept].double().numpy(), (inputs @ weight.T).double().numpy(), rcond=None)[0]
    found = error(refit(weight, moments, kept))
    assert error(torch.from_numpy(best.T).float()) - 1e-6 <= found < 0.6 * error(weight[:, kept])


def test_widths() -> None:
    spec = dataclasses.replace(TINY, decoder=dataclasses.replace(TINY.decoder, intermediate_size=4864))
    assert FfnWidth(FfnWidth.Config(keep=0.7), 0).planned(spec).decoder.intermediate_size == 3392
    assert FfnWidth(FfnWidth.Config(keep=0.7, multiple=256), 0).planned(spec).decoder.intermediate_size == 3328
    assert FfnWidth(FfnWidth.Config(keep=0.001), 0).planned(spec).decoder.intermediate_size == 64
    wide = FfnWidth(FfnWidth.Config(width=4864), 0)
    assert wide.applies_to(spec) == "its MLPs have 4864 channels, so 4864 are not fewer"
    with pytest.raises(InputError, match="width 3400 is not a multiple of 64") as caught:
        FfnWidth(FfnWidth.Config(width=3400), 0)
    assert caught.value.hint == "use 3392 or 3456"


def test_configurations_that_say_both_or_nothing() -> None:
    for config in (ShortGpt.Config, FfnWidth.Config):
        with pytest.raises(ValueError, match="give "):
            config()
    with pytest.raises(ValueError, match="give layers or kl"):
        ShortGpt.Config(layers=1, kl=0.1)


def test_every_family_of_decoder_is_narrowed_and_shortened(tmp_path: Path) -> None:
    """Phi's parallel layers with biases, behind a Q-Former (TinyGPT-V); tiles and a newline (LLaVA-OneVision)."""
    few = scenes(2)
    for name, width in (("tinygpt-v", 64), ("llava-onevision-0.5b", 64)):
        synth(name, tmp_path / name, tiny=True)
        model = load(tmp_path / name)
        smaller = run(FfnWidth, run(ShortGpt, model, few, layers=1), few, width=width)
        spec = smaller.spec.decoder
        assert (spec.num_hidden_layers, spec.intermediate_size) == (model.spec.decoder.num_hidden_layers - 1, width)
        assert all(torch.isfinite(logits).all() for logits in logits_of(smaller, few))
