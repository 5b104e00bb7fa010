"""An export for a device whose memory the model exceeds is refused with the forecast, before anything is written."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from edgevlm.cli.estimate import command as estimate_command
from edgevlm.errors import InputError, UnsupportedError
from edgevlm.pipeline import compile_recipe
from edgevlm.recipe import Recipe
from edgevlm.targets.catalog import load_target
from edgevlm.zoo.synth import synth

PROFILES = Path(__file__).parents[2] / "targets" / "profiles"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    synth("fastvlm-0.5b", folder, tiny=True, resolution=128)
    return folder


@pytest.fixture
def small_board(tmp_path: Path) -> Path:
    """A Raspberry Pi with 260 MiB for programs, where the runtime alone takes 256."""
    data: dict[str, Any] = yaml.safe_load((PROFILES / "raspberry-pi-5.yaml").read_text(encoding="utf-8"))
    for name, mib in (("total_gib", 520), ("reserved_gib", 260)):
        data["memory"][name] = {"value": mib / 1024, "mark": "assumed", "source": "for a test"}
    path = tmp_path / "small-board.yaml"
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    return path


def silent(_done: float, _total: float, _what: str) -> None:
    """A progress nobody watches."""


def test_a_model_larger_than_the_board_is_refused(checkpoint: Path, small_board: Path, tmp_path: Path) -> None:
    recipe = Recipe(model=str(checkpoint), precision="fp32", target=str(small_board))
    with pytest.raises(UnsupportedError) as caught:
        compile_recipe(recipe, tmp_path / "out", progress=silent)
    error = caught.value
    assert "short by" in error.what and "Raspberry Pi 5" in error.what and error.where == f"--target {small_board}"
    assert "--over-memory" in error.hint and "edgevlm estimate" in error.hint
    assert not (tmp_path / "out").exists()
    shown = CliRunner().invoke(estimate_command, [str(checkpoint), "--precision", "fp32", "--target", str(small_board)])
    assert "does not fit" in shown.output and shown.exit_code == 0


def test_it_is_exported_all_the_same_when_asked(checkpoint: Path, small_board: Path, tmp_path: Path) -> None:
    recipe = Recipe(model=str(checkpoint), precision="fp32", target=str(small_board))
    bundle = compile_recipe(recipe, tmp_path / "out", over_memory=True, progress=silent)
    assert bundle.manifest.recipe["target"] == str(small_board)


def test_what_fits_is_not_refused(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check passes; the next step, made to fail, is reached."""

    def reached(*_arguments: object, **_options: object) -> None:
        raise RuntimeError("reached")

    monkeypatch.setattr("edgevlm.pipeline.run_passes", reached)
    assert load_target("raspberry-pi-5").usable_bytes > 1 << 30
    with pytest.raises(RuntimeError, match="reached"):
        compile_recipe(Recipe(model=str(checkpoint), target="raspberry-pi-5"), tmp_path / "out", progress=silent)


def test_an_unknown_target_is_refused_before_the_model_is_looked_for(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no target 'jetson-orin-nanno'") as caught:
        compile_recipe(Recipe(model="nowhere", target="jetson-orin-nanno"), tmp_path / "out", progress=silent)
    assert "jetson-orin-nano" in caught.value.hint
