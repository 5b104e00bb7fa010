"""Flags and YAML fill the same recipe; what it does not know it refuses."""

from pathlib import Path

import pytest

from edgevlm.errors import InputError
from edgevlm.recipe import Recipe


def _file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return path


def test_yaml_and_flags_are_the_same_recipe(tmp_path: Path) -> None:
    file = _file(tmp_path, "model: zoo:nano-fastvlm\nformat: gguf\nprecision: int8\nverify: {vision_cosine: 0.5}\n")
    from_file = Recipe.from_sources(file, {})
    flags = {"model": "zoo:nano-fastvlm", "format": "gguf", "precision": "int8", "verify": {"vision_cosine": 0.5}}
    assert from_file == Recipe.from_sources(None, flags)
    assert from_file.verify.vision_cosine == 0.5


def test_given_flag_wins_and_absent_flag_does_not(tmp_path: Path) -> None:
    recipe = Recipe.from_sources(_file(tmp_path, "model: a\nprecision: int8\n"), {"precision": "fp16", "model": None})
    assert (recipe.model, recipe.precision) == ("a", "fp16")


def test_recipe_survives_its_own_dump() -> None:
    recipe = Recipe(model="a", resolution=512, gguf_type="q4_k_m")
    assert Recipe.model_validate(recipe.model_dump(mode="json")) == recipe


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("model: a\nprecison: int4\n", "precison"),
        ("model: a\nprecision: int3\n", "precision"),
        ("model: a\nverify: {vision_cosin: 1}\n", "verify.vision_cosin"),
        ("model: a\nverify: {vision_cosine: 2}\n", "verify.vision_cosine"),
        ("model: a\nresolution: -64\n", "resolution"),
        ("model: a\ncalibration: {source: scenes, n: 0}\n", "calibration.n"),
        ("model: a\ncalibration: {n: 4}\n", "calibration.source"),
        ("model: a\ncalibration: {source: scenes, memory: 4}\n", "calibration.memory"),
        ("model: a\npasses: [{layers: 1}]\n", "passes.0.name"),
        ("precision: int4\n", "model"),
        ("model: ''\n", "model"),
        ("- a\n", "mapping"),
        ("", "mapping"),
        ("model: [\n", "cannot be read"),
        ("model: !!python/object/apply:os.system ['touch owned']\n", "cannot be read"),
        ("\0", "cannot be read"),
    ],
)
def test_bad_recipe_names_the_field(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(InputError) as caught:
        Recipe.from_sources(_file(tmp_path, text), {})
    assert named in caught.value.what
    assert "recipe.yaml" in caught.value.where
    assert "\n" not in caught.value.what
    assert caught.value.exit_code == 2


def test_absent_or_binary_file(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "absent", tmp_path, tmp_path / "binary"):
        with pytest.raises(InputError, match="cannot be read"):
            Recipe.from_sources(path, {"model": "a"})
