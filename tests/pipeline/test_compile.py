"""From a checkpoint to a verified bundle, or to nothing."""

import dataclasses
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from edgevlm import pipeline
from edgevlm.bundle import open_bundle
from edgevlm.errors import BundleError, InputError, ParityError, UnsupportedError
from edgevlm.models import VlmModel
from edgevlm.recipe import Recipe, VerifyThresholds
from edgevlm.zoo.synth import synth


def silent(_done: float, _total: float, _what: str) -> None:
    """A progress nobody watches."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    synth("fastvlm-0.5b", folder, tiny=True, resolution=128)
    return folder


def test_an_exact_bundle_answers_exactly_like_the_original(checkpoint: Path, tmp_path: Path) -> None:
    recipe = Recipe(model=str(checkpoint), precision="fp32")
    bundle = pipeline.compile_recipe(recipe, tmp_path / "out", progress=silent)
    values = {result.metric: result.value for result in bundle.manifest.parity}
    assert values["top1_agreement"] == values["token_agreement"] == 1
    assert min(values["vision_cosine"], values["logits_cosine"]) > 0.99999
    assert open_bundle(tmp_path / "out", verify=True).manifest.recipe == recipe.model_dump(mode="json")
    assert bundle.manifest.source_sha256.keys() == {"model.safetensors"}


def test_a_gguf_bundle_holds_the_vision_graph_and_states_its_bits(checkpoint: Path, tmp_path: Path) -> None:
    recipe = Recipe(model=str(checkpoint), format="gguf", precision="int8", verify=VerifyThresholds(top1_agreement=0))
    bundle = pipeline.compile_recipe(recipe, tmp_path / "out", progress=silent)
    assert bundle.artifact("vision", ".onnx").is_file()
    decoder = bundle.find("decoder", "model-q8_0.gguf")
    assert decoder is not None
    # Q8_0 takes 8.5 bits a weight; the norms and biases of a tiny model are few and in float32.
    assert 8.5 <= decoder.bits_per_weight < 9.5


def test_a_model_that_answers_otherwise_is_refused(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exporter with a fault: one layer's output projection has the wrong sign."""
    honest = pipeline.onnx.export

    def faulty(model: VlmModel, *arguments: Any, **options: Any) -> Any:
        decoder = pipeline.load(checkpoint, resolution=128).decoder.float()
        with torch.no_grad():
            for layer in decoder.layers:
                layer.mlp.down_proj.weight = torch.nn.Parameter(-layer.mlp.down_proj.weight, requires_grad=False)
        return honest(dataclasses.replace(model, decoder=decoder), *arguments, **options)

    monkeypatch.setattr(pipeline.onnx, "export", faulty)
    with pytest.raises(ParityError, match="decoder logits_cosine"):
        pipeline.compile_recipe(Recipe(model=str(checkpoint), precision="fp32"), tmp_path / "out", progress=silent)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"gguf_type": "q4_0"}, "belongs to format gguf"),
        ({"resolution": 1000}, "multiple of 64"),
    ],
)
def test_what_cannot_work_is_refused_before_work(
    fields: dict[str, Any], message: str, checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises((InputError, UnsupportedError), match=message):
        pipeline.compile_recipe(Recipe(model=str(checkpoint), **fields), tmp_path / "out", progress=silent)
    assert list(tmp_path.iterdir()) == []


KILLED = """
import os, signal, sys
from pathlib import Path
from edgevlm import pipeline
from edgevlm.recipe import Recipe

def report(done, total, what):
    if sys.argv[3] in what:
        os.kill(os.getpid(), signal.SIGKILL)

honest = pipeline.write_manifest
def write(folder, manifest):
    honest(folder, manifest)
    if sys.argv[3] == "manifest" and manifest.parity:
        os.kill(os.getpid(), signal.SIGKILL)

pipeline.write_manifest = write
pipeline.compile_recipe(Recipe(model=sys.argv[1]), Path(sys.argv[2]), progress=report)
"""


def test_an_export_killed_anywhere_leaves_nothing_that_is_accepted(checkpoint: Path, tmp_path: Path) -> None:
    """Killed at the start, in each part of the export, in verification, and just before the folder gets its name."""
    out = tmp_path / "here" / "out"
    for moment in ("load", "vision tower", "decoder head", "verify: the bundle answers", "manifest"):
        run = subprocess.run(
            [sys.executable, "-c", KILLED, checkpoint, out, moment], capture_output=True, text=True, check=False
        )
        assert run.returncode == -signal.SIGKILL, (moment, run.stderr[-2000:])
        assert not out.exists()
        for folder in (tmp_path / "here").glob("*") if out.parent.exists() else ():
            with pytest.raises(BundleError):
                open_bundle(folder)
    bundle = pipeline.compile_recipe(Recipe(model=str(checkpoint)), out, progress=silent)
    assert bundle.manifest.parity
    assert [path.name for path in out.parent.iterdir()] == ["out"], "the leftovers of killed runs are cleaned up"
