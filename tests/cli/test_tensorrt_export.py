"""Flags of `edgevlm export --format tensorrt` reach the recipe, and what they cannot mean is three lines."""

from pathlib import Path
from typing import Any

import pytest

from edgevlm import pipeline
from edgevlm.cli import main
from edgevlm.errors import EngineError
from edgevlm.recipe import Recipe


def test_flags_reach_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Recipe] = []

    def stop(recipe: Recipe, *_arguments: Any, **_options: Any) -> None:
        seen.append(recipe)
        raise EngineError("far enough")

    monkeypatch.setattr(pipeline, "compile_recipe", stop)
    flags = ["--format", "tensorrt", "--tensorrt-version", "10.3", "--context-length", "1024"]
    flags += ["--tensorrt-dtype", "bf16"]
    with pytest.raises(SystemExit) as left:
        main(["export", "model", "-o", str(tmp_path / "out"), *flags])
    assert left.value.code == 1
    (recipe,) = seen
    assert (recipe.format, recipe.tensorrt_version, recipe.context_length) == ("tensorrt", "10.3", 1024)
    assert recipe.tensorrt_dtype == "bf16"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--tensorrt-version", "newest"), "tensorrt_version"),
        (("--context-length", "0"), "context_length"),
        (("--tensorrt-version", "7.1"), "too old"),
        (("--target", "raspberry-pi-5"), "has no TensorRT"),
        (("--kv-cache", "int8", "--calibrate", "scenes"), "type that they compute in"),
        (("--vision-precision", "int4"), "stored for CPUs"),
    ],
)
def test_what_cannot_be_is_three_lines(
    flags: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["export", "zoo:nano-fastvlm", "-o", str(tmp_path / "out"), "--format", "tensorrt", *flags]
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()[-3:]
    assert [line.split(":")[0] for line in lines] == ["error", "where", "hint"]
    assert said in lines[0]
    assert not (tmp_path / "out").exists()
