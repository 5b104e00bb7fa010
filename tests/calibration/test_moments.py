"""Statistics of all layers: those of the decoder run whole, and the same when they are read back."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny import tiny_with_tokenizer
from torch import Tensor

from edgevlm.calibration import Calibration, moments
from edgevlm.calibration.activations import embed
from edgevlm.calibration.layers import linear_groups, walk
from edgevlm.calibration.moments import layer_moments
from edgevlm.calibration.scratch import Scratch
from edgevlm.calibration.sources import open_calibration
from edgevlm.errors import CheckpointError
from edgevlm.models.vlm import VlmModel


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with torch.no_grad():
        yield


@pytest.fixture
def model(tmp_path: Path) -> VlmModel:
    return tiny_with_tokenizer(tmp_path)


def collected(model: VlmModel, calibration: Calibration | None = None) -> list[dict[str, Tensor]]:
    data = calibration or open_calibration("scenes", 3)
    return [found.moments for found in layer_moments(model, data, Scratch(1 << 30), lambda *_: None)]


def equal(one: list[dict[str, Tensor]], other: list[dict[str, Tensor]]) -> bool:
    return all(torch.equal(a[name], b[name]) for a, b in zip(one, other, strict=True) for name in a)


def test_they_are_means_over_the_positions_of_all_samples(model: VlmModel) -> None:
    activations = embed(model, open_calibration("scenes", 3), Scratch(1 << 30), lambda *_: None)
    for step, found in zip(walk(model.decoder, activations), collected(model), strict=True):
        rows = torch.cat([step.layer.input_layernorm(states) for states in activations.states])
        torch.testing.assert_close(found["self_attn.q_proj"], rows.T @ rows / len(rows), rtol=1e-4, atol=1e-5)
        assert set(found) == {group[0] for group in linear_groups(step.layer)}


def test_a_second_run_reads_them_and_gets_the_same(model: VlmModel, monkeypatch: pytest.MonkeyPatch) -> None:
    first = collected(model)

    def refuse(*_: object) -> None:
        raise AssertionError("collected again")

    monkeypatch.setattr(moments, "embed", refuse)
    assert equal(collected(model), first)
    for found in layer_moments(model, open_calibration("scenes", 3), Scratch(0), lambda *_: None):
        assert torch.equal(found.layer.mlp.down_proj.weight, model.decoder.layers[found.index].mlp.down_proj.weight)


def test_other_weights_or_samples_are_collected_anew(model: VlmModel, tmp_path: Path) -> None:
    first = collected(model)
    assert not equal(collected(model, open_calibration("scenes", 4)), first)
    other = tiny_with_tokenizer(tmp_path)
    other.decoder.layers[0].self_attn.v_proj.weight.data *= 1.5
    assert not equal(collected(other), first)


def test_old_ones_make_room(model: VlmModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    collected(model)
    (first,) = (tmp_path / "edgevlm" / "calibration").iterdir()
    size = sum(file.stat().st_size for file in first.iterdir())
    monkeypatch.setattr(moments, "KEPT_BYTES", int(1.5 * size))
    collected(model, open_calibration("scenes", 4))
    assert not first.exists()
    assert len(list((tmp_path / "edgevlm" / "calibration").iterdir())) == 1


def test_a_run_that_was_stopped_is_not_taken_for_a_whole_one(model: VlmModel, tmp_path: Path) -> None:
    whole = collected(model)
    (folder,) = (tmp_path / "edgevlm" / "calibration").iterdir()
    sorted(folder.iterdir())[-1].unlink()
    assert equal(collected(model), whole)


def test_a_damaged_file_is_made_anew(model: VlmModel, tmp_path: Path) -> None:
    whole = collected(model)
    (folder,) = (tmp_path / "edgevlm" / "calibration").iterdir()
    sorted(folder.iterdir())[-1].write_bytes(b"no statistics")
    assert equal(collected(model), whole)


def test_activations_that_are_not_finite_are_named(model: VlmModel) -> None:
    model.decoder.layers[1].post_attention_layernorm.weight.data[3] = float("inf")
    with pytest.raises(CheckpointError, match="not finite") as caught:
        collected(model)
    assert caught.value.where == "decoder.layers.1.mlp.gate_proj"
