"""The shipped reference models must load, be small, answer from the image, and have the card they deserve."""

import pytest

from edgevlm.errors import InputError
from edgevlm.models import load
from edgevlm.spec import VitSpec
from edgevlm.zoo import models, resolve
from edgevlm.zoo.card import TARGET_ALL, TARGET_EACH
from edgevlm.zoo.evaluate import evaluate
from edgevlm.zoo.scenes import TYPES

SHIPPED = models()


def test_zoo_names_resolve_and_unknown_ones_are_refused() -> None:
    assert "nano-fastvlm" in SHIPPED
    assert (resolve("zoo:nano-fastvlm") / "config.json").is_file()
    with pytest.raises(InputError, match="no zoo model"):
        resolve("zoo:../../secrets")


@pytest.mark.parametrize("name", SHIPPED)
def test_weights_take_at_most_12_megabytes_in_half_precision(name: str) -> None:
    folder = resolve(f"zoo:{name}")
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= 12_000_000
    model = load(folder)
    assert {str(value.dtype) for value in model.decoder.state_dict().values()} == {"torch.float16"}
    assert model.spec.decoder.hidden_size % 256 == model.spec.decoder.intermediate_size % 256 == 0


def test_the_llava_is_a_subject_for_token_pruning() -> None:
    """A class token whose attention can be asked, and at least 144 patches to choose from."""
    spec = load(resolve("zoo:nano-llava")).spec
    encoder = spec.vision.encoder
    assert isinstance(encoder, VitSpec)
    assert encoder.class_token
    assert spec.vision.image_tokens >= 144


@pytest.mark.parametrize("name", SHIPPED)
def test_it_answers_from_the_image(name: str) -> None:
    """96 items of the calibration split: far above chance with the image, at most about chance without."""
    overall = evaluate(load(resolve(f"zoo:{name}")), "calibration", 96)[-1]
    assert overall.accuracy >= 0.88
    assert overall.noise_accuracy <= overall.chance + 0.08


@pytest.mark.parametrize("name", SHIPPED)
def test_the_card_states_scores_that_meet_the_target(name: str) -> None:
    rows: dict[str, float] = {}
    for line in (resolve(f"zoo:{name}") / "README.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0] in (*TYPES, "all"):
            rows[cells[0]] = float(cells[2]) / 100
    assert rows["all"] >= TARGET_ALL
    assert all(rows[question_type] >= TARGET_EACH for question_type in TYPES)
