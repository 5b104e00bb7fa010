"""`vision_precision: auto` takes static int8 where that is faster, and says so."""

from pathlib import Path

import pytest

from edgevlm import pipeline
from edgevlm.bundle import Bundle
from edgevlm.calibration.sources import open_calibration
from edgevlm.errors import InputError
from edgevlm.models import load
from edgevlm.pipeline import vision_choice
from edgevlm.pipeline.vision_choice import choose_vision
from edgevlm.recipe import CalibrationData, Recipe, VerifyThresholds
from edgevlm.zoo.synth import synth


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """Of a small model that answers by chance."""
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    synth("llava-1.5-7b", folder, tiny=True)
    return Recipe(
        model=str(folder),
        vision_precision="auto",
        calibration=CalibrationData(source="scenes", n=6),
        verify=VerifyThresholds(top1_agreement=0, token_agreement=0, logits_cosine=-1),
    )


@pytest.mark.parametrize(("narrow_ms", "chosen"), [(6.0, "w8a8"), (9.0, "fp16")])
def test_what_is_really_faster_is_taken(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, narrow_ms: float, chosen: str
) -> None:
    """Where float32 takes 10 ms an image, and int8 as long as the test says."""
    timed: list[str] = []

    def ms(bundle: Bundle) -> float:
        entry = bundle.find("vision", ".onnx_data")
        assert entry is not None
        timed.append(entry.precision)
        return {"fp16": 10.0, "w8a8": narrow_ms}[entry.precision]

    monkeypatch.setattr(vision_choice, "fastest_vision_ms", ms)
    made = choose_vision(recipe, load(Path(recipe.model)), open_calibration("scenes", 6), lambda *_: None)
    assert timed == ["fp16", "w8a8"]
    assert made.precision == chosen
    assert (made.static is not None) == (chosen == "w8a8")
    assert f"10 ms in float32 and {narrow_ms:.3g} ms in int8" in made.reason


def test_this_machine_is_measured_and_the_choice_is_kept(recipe: Recipe, tmp_path: Path) -> None:
    bundle = pipeline.compile_recipe(recipe, tmp_path / "out", progress=lambda *_: None)
    (note,) = [note for note in bundle.spec.notes if "ms in float32" in note]
    entry = bundle.find("vision", ".onnx_data")
    assert entry is not None
    # The recipe in the manifest makes the same again, on a machine where another would be faster.
    assert bundle.manifest.recipe["vision_precision"] == entry.precision
    assert ("computes in int8" in note) == (entry.precision == "w8a8")


def test_without_images_it_is_refused_before_work(recipe: Recipe, tmp_path: Path) -> None:
    bare = recipe.model_copy(update={"calibration": None})
    with pytest.raises(InputError, match="static int8 needs calibration images"):
        pipeline.compile_recipe(bare, tmp_path / "out", progress=lambda *_: None)
    assert not list(tmp_path.iterdir())
