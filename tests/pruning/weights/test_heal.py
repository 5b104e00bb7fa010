"""Healing: what the student is taught, that zeros and shapes stay, that it learns, and that it can be stopped."""

import copy
import dataclasses
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from pruned_models import run, scenes, silent, states_of

from edgevlm.calibration import Calibration
from edgevlm.calibration.activations import Activations
from edgevlm.calibration.answers import answer_rows, divergence
from edgevlm.calibration.layers import run_through
from edgevlm.calibration.scratch import Scratch
from edgevlm.calibration.sources import open_calibration
from edgevlm.models import VlmModel, load, resolve
from edgevlm.models.rebuild import with_decoder
from edgevlm.passes import PassContext
from edgevlm.pruning.weights.heal import Heal, HealConfig, Trainer, teach
from edgevlm.pruning.weights.packs import groups_of
from edgevlm.pruning.weights.shortgpt import ShortGpt
from edgevlm.pruning.weights.sparsify import PruneWeights
from edgevlm.pruning.weights.student import Student
from edgevlm.pruning.weights.vocab import TrimVocabulary


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """States of runs go to a folder of the test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield


@pytest.fixture(scope="module")
def nano() -> VlmModel:
    return load(resolve("zoo:nano-fastvlm"))


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    return scenes(12)


@pytest.fixture(scope="module")
def start(nano: VlmModel, calibration: Calibration) -> Activations:
    """The samples in front of the first layer."""
    return states_of(nano, calibration)


@pytest.fixture(scope="module")
def short(nano: VlmModel, calibration: Calibration) -> VlmModel:
    return run(ShortGpt, nano, calibration, layers=1)


def trainer_of(original: VlmModel, pruned: VlmModel, start: Activations, **fields: float) -> Trainer:
    scratch = Scratch(1 << 30)
    lesson = teach(original, pruned, start.copy(scratch), scratch, silent)
    return Trainer(HealConfig.model_validate(fields), 0, pruned, lesson, 1 << 30)


def heal(original: VlmModel, pruned: VlmModel, calibration: Calibration, **fields: float) -> VlmModel:
    made = Heal(HealConfig.model_validate(fields), 0)
    return made.run(pruned, PassContext(calibration, original, silent))


def without(model: VlmModel, layer: int) -> VlmModel:
    """The model without one layer."""
    kept = [index for index in range(len(model.decoder.layers)) if index != layer]
    return with_decoder(model, dataclasses.replace(model.spec.decoder, num_hidden_layers=len(kept)), {}, kept)


def kl(original: VlmModel, pruned: VlmModel, start: Activations) -> float:
    """Of the answers' distributions, on the walk that other passes use."""
    answers, found = (start.copy(Scratch(1 << 30)) for _ in range(2))
    run_through(original.decoder, answers)
    run_through(pruned.decoder, found)
    with torch.no_grad():
        return divergence(original.decoder, found, answers)


@torch.no_grad()
def test_losses_are_those_of_each_sample_alone(nano: VlmModel, short: VlmModel, start: Activations) -> None:
    """Batches are padded and the student is only layers; here both models run whole, sample by sample."""
    short = without(nano, 1)
    trainer = trainer_of(nano, short, start)
    batch = [0, 3, 7, 9]
    teacher, student = copy.deepcopy(nano.decoder).float(), copy.deepcopy(short.decoder).float()
    divergences, distances = [], []
    for sample in batch:
        states, sequence = start.states[sample][None], start.sequences[sample]
        rows = answer_rows(sequence)
        expected, _ = teacher(states, sequence.positions)
        found, _ = student(states, sequence.positions)
        p, q = expected[0, rows].log_softmax(1), found[0, rows].log_softmax(1)
        divergences.append((p.exp() * (p - q)).sum(1))
        behind = {}
        for model, name in ((teacher, "teacher"), (student, "student")):
            x = states
            for index, layer in enumerate(model.layers):
                x = layer(x, start.rotary(sample), None, None)[0]
                behind[name, index] = x[0]
        final = {name: model.norm(behind[name, last][rows]) for name, model, last in
                 (("teacher", teacher, 3), ("student", student, 2))}  # fmt: skip
        # The layer behind the gap, everywhere, and the end, where the answers are.
        pairs = [(behind["student", 1], behind["teacher", 2]), (final["student"], final["teacher"])]
        distances.append([(a - b).square().sum(1) / b.square().sum(1) for a, b in pairs])
    loss, distance = trainer._losses([[0], [3], [7], [9]])
    assert float(loss) == pytest.approx(float(torch.cat(divergences).mean()), rel=1e-3)
    packed, apart = trainer._losses([[0, 1, 2], [7, 8]]), trainer._losses([[0], [1], [2], [7], [8]])
    assert groups_of(start)[0][:3] == [0, 1, 2]
    assert float(packed[0]) == pytest.approx(float(apart[0]), rel=1e-4)
    each = [float(torch.cat(column).mean()) for column in zip(*distances, strict=True)]
    assert float(distance) == pytest.approx(float(np.mean(each)), rel=1e-2)


@pytest.mark.parametrize("rank", [None, 8])
def test_a_student_starts_as_the_pruned_model(rank: int | None, short: VlmModel, start: Activations) -> None:
    student = Student(short.decoder, rank, 0)
    start = start.copy(Scratch(1 << 30))
    with torch.no_grad():
        found = student(start.states[0][None], start.rotary(0))[-1][0]
        tensors = student.weights()
    run_through(short.decoder, start)
    np.testing.assert_allclose(found, start.states[0], atol=1e-4)
    stored = {n: v for n, v in short.decoder.state_dict().items() if n.startswith("layers.")}
    assert tensors.keys() == stored.keys()
    assert all(torch.equal(tensors[name], value.float()) for name, value in stored.items())
    saving = Student(short.decoder, rank, 0, save_memory=True)
    again = saving(start.states[1][None], start.rotary(1))[-1]
    assert torch.equal(again, student(start.states[1][None], start.rotary(1))[-1])


@pytest.mark.parametrize("rank", [None, 16])
def test_the_model_learns_to_answer_like_the_original(
    rank: int | None, nano: VlmModel, short: VlmModel, calibration: Calibration, start: Activations
) -> None:
    healed = heal(nano, short, calibration, steps=15, batch=2, rate=2e-3, **({} if rank is None else {"rank": rank}))
    before, after = kl(nano, short, start), kl(nano, healed, start)
    assert after < 0.6 * before
    assert "15 steps of 2 images among 12 samples" in healed.spec.notes[-1]
    old, new = short.decoder.state_dict(), healed.decoder.state_dict()
    assert all(new[name].dtype == value.dtype for name, value in old.items())
    rest = [name for name in old if not name.startswith("layers.")]
    assert all(torch.equal(old[name], new[name]) for name in rest)
    assert healed.decoder.origins == short.decoder.origins


def test_a_quarter_of_the_layers_is_made_up_for_on_images_never_shown(nano: VlmModel) -> None:
    """Thirty steps halve the divergence on questions of another seed; docs/measurements has the run to the end."""
    shown = scenes(160)
    short = run(ShortGpt, nano, shown, layers=1, by="answers")
    others = states_of(nano, open_calibration("scenes", 60, seed=5))
    healed = heal(nano, short, shown, steps=30, batch=8, rate=1e-3)
    assert len(healed.decoder.layers) == 0.75 * len(nano.decoder.layers)
    assert kl(nano, healed, others) < 0.5 * kl(nano, short, others)


@pytest.mark.parametrize("rank", [None, 4])
def test_zeros_stay_zeros(rank: int | None, nano: VlmModel, calibration: Calibration) -> None:
    sparse = run(PruneWeights, nano, calibration, method="magnitude", sparsity="2:4")
    healed = heal(nano, sparse, calibration, steps=3, batch=4, rate=5e-3, **({} if rank is None else {"rank": rank}))
    old, new = sparse.decoder.state_dict(), healed.decoder.state_dict()
    for name, value in old.items():
        if name.startswith("layers.") and value.ndim == 2:
            assert not new[name][value == 0].any()
            assert not torch.equal(new[name], value)


def test_the_vocabulary_may_be_smaller_than_the_original_s(
    nano: VlmModel, calibration: Calibration, start: Activations
) -> None:
    """Distributions are compared over the tokens that both have; the prompts are the original's."""
    small = run(TrimVocabulary, nano, calibration)
    trainer = trainer_of(nano, small, start)
    loss, distance = trainer._losses([[0], [1]])
    assert float(loss.detach()) == pytest.approx(0, abs=1e-5)
    assert float(distance.detach()) == pytest.approx(0, abs=1e-4)


def test_a_stopped_run_goes_on_and_ends_the_same(nano: VlmModel, short: VlmModel, calibration: Calibration) -> None:
    """Ctrl-C between two steps; the same command then ends where an uninterrupted one does, and leaves no state."""
    fields = {"steps": 5, "batch": 4}
    whole = heal(nano, short, calibration, **fields)

    def stop(_done: float, _total: float, what: str) -> None:
        if what.startswith("step 2"):
            os.kill(os.getpid(), signal.SIGINT)

    made = Heal(HealConfig.model_validate(fields), 0)
    with pytest.raises(KeyboardInterrupt):
        made.run(short, PassContext(calibration, nano, stop))
    (state,) = Path(os.environ["XDG_CACHE_HOME"]).rglob("*.pt")
    seen: list[str] = []
    resumed = made.run(short, PassContext(calibration, nano, lambda _d, _t, what: seen.append(what)))
    assert [what.split(",")[0] for what in seen if what.startswith("step")] == [
        "step 3 of 5",
        "step 4 of 5",
        "step 5 of 5",
    ]
    assert not state.exists()
    assert resumed.spec.notes == whole.spec.notes
    expected = whole.decoder.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in resumed.decoder.state_dict().items())


def test_a_state_of_another_run_is_not_taken(nano: VlmModel, short: VlmModel, start: Activations) -> None:
    files = {
        trainer_of(nano, short, start, steps=5).state_file(),
        trainer_of(nano, short, start, steps=6).state_file(),
        trainer_of(nano, short, start.copy(Scratch(1 << 30), 11), steps=5).state_file(),
        trainer_of(nano, nano, start, steps=5).state_file(),
    }
    assert len(files) == 4
    assert trainer_of(nano, short, start, steps=5).state_file() in files


def test_a_damaged_state_is_left_aside(nano: VlmModel, short: VlmModel, start: Activations) -> None:
    trainer = trainer_of(nano, short, start, steps=1)
    path = trainer.state_file()
    path.parent.mkdir(parents=True)
    path.write_bytes(b"not a state")
    trainer.run(silent)
    assert trainer.step == 1
    assert not path.exists()


def test_more_samples_than_for_calibration(nano: VlmModel, short: VlmModel, calibration: Calibration) -> None:
    healed = heal(nano, short, calibration, steps=1, batch=2, n=20)
    assert "among 20 samples" in healed.spec.notes[-1]


def test_every_epoch_shows_every_sample_once(nano: VlmModel, short: VlmModel) -> None:
    trainer = trainer_of(nano, short, states_of(nano, scenes(30)), batch=2)
    groups = groups_of(trainer.lesson.start)
    assert len(groups) > 4
    shown = []
    for step in range(2 * len(groups)):
        trainer.step = step
        shown += trainer._batch()
    epochs = [shown[start : start + len(groups)] for start in range(0, 4 * len(groups), len(groups))]
    assert all(sorted(epoch) == groups for epoch in epochs)
    assert epochs[0] != epochs[1]
