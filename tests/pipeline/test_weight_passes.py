"""Passes on weights in a recipe: they compose, bundles answer like the pruned model, illegal orders are refused."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import edgevlm
from edgevlm.bundle import Bundle
from edgevlm.calibration.sources import open_calibration
from edgevlm.errors import InputError, UnsupportedError
from edgevlm.exporters.gguf import exporter as gguf
from edgevlm.models import VlmModel, load
from edgevlm.pipeline import compile_recipe
from edgevlm.pipeline.passes import parse_passes, plan_passes, run_passes
from edgevlm.recipe import CalibrationData, PassEntry, Recipe
from edgevlm.zoo.scenes import scenes
from edgevlm.zoo.synth import synth

ALL = [
    {"name": "shortgpt", "layers": 1},
    {"name": "ffn_width", "width": 128},
    {"name": "vocab"},
    {"name": "prune_weights", "method": "wanda", "sparsity": "2:4"},
    {"name": "heal", "steps": 2, "batch": 1},
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    synth("fastvlm-0.5b", folder, tiny=True, resolution=128)
    return folder


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def recipe(entries: list[dict[str, Any]], model: str = "m", **fields: Any) -> Recipe:
    return Recipe(model=model, passes=tuple(PassEntry.model_validate(entry) for entry in entries), **fields)


def compiled(entries: list[dict[str, Any]], checkpoint: Path, out: Path, **fields: Any) -> Bundle:
    data = CalibrationData(source="scenes", n=6)
    asked = recipe(entries, str(checkpoint), calibration=data, precision="fp32", **fields)
    return compile_recipe(asked, out, progress=lambda *_: None)


@pytest.mark.parametrize("format_", ["onnx", "gguf"])
def test_all_passes_compose_in_every_format(format_: str, checkpoint: Path, tmp_path: Path) -> None:
    """The verification of the export compares with the pruned model: exact weights, exact answers."""
    bundle = compiled(ALL, checkpoint, tmp_path / "out", format=format_)
    decoder = bundle.spec.decoder
    assert (decoder.num_hidden_layers, decoder.intermediate_size) == (1, 128)
    assert decoder.vocab_size < 700
    values = {result.metric: result.value for result in bundle.manifest.parity}
    assert values["top1_agreement"] == values["token_agreement"] == 1
    assert [note.split(":")[0] for note in bundle.spec.notes] == ["shortgpt", "ffn_width", "vocab", "wanda", "heal"]


@pytest.mark.parametrize("format_", ["onnx", "gguf"])
def test_four_bits_and_a_small_vocabulary_answer_as_four_bits_alone(format_: str, tmp_path: Path) -> None:
    """The shipped model on its task: rows are quantized one by one, so those that stay have the numbers they had."""

    def answers_of(name: str, *passes: dict[str, Any]) -> tuple[int, list[str]]:
        asked = recipe(list(passes), "zoo:nano-fastvlm", format=format_, precision="int4")
        bundle = compile_recipe(asked, tmp_path / name, progress=lambda *_: None)
        with edgevlm.load(bundle.path) as session:
            said = [session.generate(item.image, item.question, max_tokens=8).text for item in scenes("test", 24)]
        return bundle.spec.decoder.vocab_size, said

    rows, said = answers_of("whole")
    fewer, alike = answers_of("small", {"name": "vocab", "corpus": "scenes"})
    assert fewer <= 0.6 * rows
    assert alike == said
    assert len(set(said)) > 5


def pruned(entries: list[dict[str, Any]], checkpoint: Path, source: str = "scenes") -> VlmModel:
    """The model after its passes, without an export."""
    passes, calibration, model = parse_passes(recipe(entries)), open_calibration(source, 4), load(checkpoint)
    plan_passes(passes, model.spec, calibration)
    return run_passes(passes, model, calibration, lambda *_: None)


def test_structured_passes_make_the_files_smaller_and_zeros_do_not(checkpoint: Path, tmp_path: Path) -> None:
    def bytes_after(*entries: dict[str, Any]) -> int:
        gguf.export(pruned(list(entries), checkpoint), tmp_path, gguf_type="q8_0", progress=lambda *_: None)
        return (tmp_path / "model-q8_0.gguf").stat().st_size

    whole = bytes_after()
    assert bytes_after(ALL[0]) < 0.75 * whole
    assert bytes_after(ALL[1]) < 0.9 * whole
    assert bytes_after(ALL[2]) < 0.85 * whole
    assert bytes_after(ALL[3]) == whole


def test_an_unreadable_image_is_noted(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (40, 30), (200, 0, 0)).save(tmp_path / "images/good.png")
    (tmp_path / "images/bad.png").write_bytes(b"no image")
    model = pruned([ALL[3]], checkpoint, str(tmp_path / "images"))
    assert model.spec.notes[-1].startswith("calibrated without 1 image that cannot be read: bad.png (")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([ALL[3], ALL[0]], "shortgpt cannot come after prune_weights: the share of zeros would change"),
        ([ALL[4], ALL[3]], "prune_weights cannot come after heal: what was trained would be damaged again"),
        ([ALL[4], ALL[2]], "vocab cannot come after heal"),
        ([ALL[3], ALL[3]], "prune_weights stands twice"),
        ([ALL[0], {"name": "prune_tokens", "method": "uniform", "keep": 4}], "prune_tokens cannot come after shortgpt"),
    ],
)
def test_illegal_orders(entries: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message) as caught:
        parse_passes(recipe(entries))
    assert caught.value.hint


def test_widths_for_k_quants() -> None:
    """q4_k_m packs 256 weights of a row; other widths would fall back to larger types."""
    for fields in ({"keep": 0.5}, {"width": 320}):
        with pytest.raises(UnsupportedError, match="q4_k_m needs a width that is a multiple of 256"):
            parse_passes(recipe([{"name": "ffn_width", **fields}], format="gguf", gguf_type="q4_k_m"))
        parse_passes(recipe([{"name": "ffn_width", **fields}], format="gguf", gguf_type="q4_0"))
    for fields in ({"keep": 0.5, "multiple": 256}, {"width": 512}):
        parse_passes(recipe([{"name": "ffn_width", **fields}], format="gguf", gguf_type="q4_k_m"))


def test_calibration_data_that_are_none(checkpoint: Path, tmp_path: Path) -> None:
    data = CalibrationData(source=str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="no calibration data"):
        compile_recipe(recipe(ALL, str(checkpoint), calibration=data), tmp_path / "out", progress=lambda *_: None)
    with pytest.raises(InputError, match="shortgpt needs calibration images"):
        compile_recipe(recipe(ALL, str(checkpoint)), tmp_path / "out", progress=lambda *_: None)
    assert not (tmp_path / "out").exists()
