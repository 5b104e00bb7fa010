"""The forecast of a recipe: its bytes are those that exporters write, its steps those of the recipe."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from edgevlm.cli.estimate import command
from edgevlm.errors import CheckpointError, InputError, UnsupportedError
from edgevlm.models import describe, load
from edgevlm.models.catalog import CATALOG
from edgevlm.pipeline import compile_recipe
from edgevlm.pipeline.estimate import PUBLISHED, estimate
from edgevlm.pipeline.planner import Estimate, Question
from edgevlm.recipe import Recipe, VerifyThresholds
from edgevlm.targets.catalog import load_target
from edgevlm.targets.profile import Figure, TargetProfile
from edgevlm.zoo.synth import NAMES, WHOLE, synth

PI = load_target("raspberry-pi-5")
NANO = load_target("jetson-orin-nano")
LOOSE = VerifyThresholds(top1_agreement=0, token_agreement=0, logits_cosine=-1, vision_cosine=0)


def with_memory(profile: TargetProfile, usable: float) -> TargetProfile:
    """The same device with so many bytes for a program."""
    total = Figure(value=2 * usable / 2**30, mark="assumed", source="for a test")
    reserved = Figure(value=usable / 2**30, mark="assumed", source="for a test")
    return profile.model_copy(
        update={"memory": profile.memory.model_copy(update={"total_gib": total, "reserved_gib": reserved})}
    )


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    synth("fastvlm-0.5b", folder, tiny=True, resolution=128)
    return folder


@pytest.fixture(scope="module")
def large() -> Estimate:
    """A model of published size, without its weights, on a small board."""
    return estimate(Recipe(model="llava-1.5-7b", precision="fp16"), NANO, Question(), "tensorrt")


@pytest.mark.parametrize(("format_", "precision"), [("onnx", "int4"), ("gguf", "int8"), ("tensorrt", "int4")])
def test_bytes_are_those_of_the_bundle(checkpoint: Path, tmp_path: Path, format_: Any, precision: Any) -> None:
    recipe = Recipe(model=str(checkpoint), format=format_, precision=precision, verify=LOOSE)
    bundle = compile_recipe(recipe, tmp_path / "out", progress=lambda *_: None)
    weights = {"vision": 0.0, "decoder": 0.0}
    for entry in bundle.manifest.artifacts:
        held = entry.bits_per_weight * entry.parameters / 8
        weights["vision" if entry.role == "vision" else "decoder"] += held
    target = NANO if format_ == "tensorrt" else PI
    parts = estimate(recipe, target, Question(answer_tokens=8)).result.work.weights
    forecast = {part.name: part.stored_bytes for part in parts}
    vision = forecast.pop("vision")
    assert vision == pytest.approx(weights["vision"], rel=0.02)
    assert sum(forecast.values()) == pytest.approx(weights["decoder"], rel=0.02)


def test_steps_are_those_of_the_recipe(checkpoint: Path) -> None:
    passes: Any = [{"name": "prune_tokens", "method": "uniform", "keep": 1}, {"name": "shortgpt", "layers": 1}]
    recipe = Recipe(model=str(checkpoint), passes=passes, format="onnx", vision_precision="w8a8")
    steps = estimate(recipe, PI, Question(answer_tokens=8)).steps
    names = ["float16, as published", "prune_tokens", "shortgpt", "decoder in int4", "vision in w8a8"]
    assert [step.name for step in steps] == names
    published, pruned, shorter, narrow, last = (step.work for step in steps)
    assert (published.image_tokens, pruned.image_tokens) == (4, 1)
    assert pruned.prefill_flops < published.prefill_flops and pruned.token_bytes == published.token_bytes
    assert (pruned.layers, shorter.layers) == (2, 1) and shorter.token_bytes < pruned.token_bytes
    assert narrow.token_bytes < shorter.token_bytes / 2 and narrow.prefill_dtype == "int8"
    assert narrow.weights[0] != last.weights[0] and last.vision_dtype == "int8"
    assert steps[-1].forecast.peak.total < steps[0].forecast.peak.total


def test_what_only_a_run_can_tell_is_said(checkpoint: Path) -> None:
    passes: Any = [{"name": "vocab", "corpus": "scenes"}]
    steps = estimate(Recipe(model=str(checkpoint), passes=passes), PI, Question(answer_tokens=8)).steps
    assert "known only when it has run" in steps[1].note and not steps[0].note


def test_a_narrow_cache_takes_a_quarter(checkpoint: Path) -> None:
    """Only ONNX has one, so that the board's first runtime is passed over."""
    passes: Any = [{"name": "kv_cache"}]
    steps = estimate(Recipe(model=str(checkpoint), passes=passes), PI, Question(answer_tokens=8)).steps
    assert steps[0].work.cache_bytes == 4 * steps[-1].work.cache_bytes


def test_a_model_of_published_size_needs_no_weights(large: Estimate) -> None:
    """LLaVA-1.5-7B: 7.06 billion weights (without the last layer of its CLIP, which is not used)."""
    work = large.result.work
    assert work.parameters == pytest.approx(7.05e9, rel=0.01)
    assert work.image_tokens == 576 and work.prompt_tokens == 608
    assert work.vision_flops == pytest.approx(390e9, rel=0.01)
    assert work.prefill_flops == pytest.approx(2 * 6.48e9 * 608, rel=0.03)


def test_hub_ids_of_known_sizes_are_not_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(PUBLISHED) <= {checkpoint for family in CATALOG for checkpoint in family.checkpoints}
    assert set(PUBLISHED.values()) <= set(NAMES)
    monkeypatch.setattr("edgevlm.pipeline.estimate.resolve", lambda model: pytest.fail(f"{model} is looked for"))
    found = estimate(Recipe(model="llava-hf/llava-1.5-7b-hf"), NANO, Question(), "tensorrt")
    assert found.model == "llava-1.5-7b"


def test_a_model_that_does_not_fit_is_told_what_would(large: Estimate) -> None:
    forecast = large.result.forecast
    assert not forecast.fits and forecast.short_bytes == pytest.approx(forecast.peak.total - NANO.usable_bytes)
    assert large.larger_targets and all(
        load_target(name).usable_bytes >= forecast.peak.total for name in large.larger_targets
    )


def test_remedies_are_tried(checkpoint: Path) -> None:
    """A device between the two precisions: the narrow one fits, and is said to."""
    ask = Question(answer_tokens=8)
    recipe = Recipe(model=str(checkpoint), precision="fp16")
    sizes = [
        estimate(recipe.model_copy(update={"precision": each}), PI, ask).result.forecast.peak.total
        for each in ("fp16", "int4")
    ]
    between = with_memory(PI, sum(sizes) / 2)
    found = estimate(recipe, between, ask)
    assert not found.result.forecast.fits
    fitting = {remedy.change: remedy.peak_bytes for remedy in found.remedies}
    assert fitting["--precision int4"] == pytest.approx(sizes[1])
    assert all(size <= between.usable_bytes for size in fitting.values())
    hopeless = estimate(recipe, with_memory(PI, sizes[1] / 2), ask)
    assert hopeless.remedies == () and hopeless.larger_targets


def test_holes_in_place_of_weights_change_nothing(tmp_path: Path) -> None:
    for name in ("fastvlm-7b", "smolvlm-256m", "qwen2-vl-2b", "llava-mini-qwen-0.5b"):
        hollow, whole = tmp_path / "hollow" / name, tmp_path / "whole" / name
        synth(name, hollow, tiny=True, hollow=True)
        synth(name, whole, tiny=True)
        assert describe(hollow)[0] == describe(whole)[0] == load(whole).spec
        blocks = sum(path.stat().st_blocks for path in hollow.glob("*.safetensors"))
        assert blocks < sum(path.stat().st_blocks for path in whole.glob("*.safetensors"))


@pytest.mark.parametrize(
    ("recipe", "ask", "target", "error", "words"),
    [
        ({"model": "tinygpt-v"}, Question(), PI, CheckpointError, "without its weights"),
        ({"model": "nowhere"}, Question(), PI, CheckpointError, "no such model"),
        ({}, Question(context=10), PI, InputError, "exceed 10"),
        ({}, Question(image_width=0), PI, InputError, "0 x 768"),
        ({"passes": [{"name": "shortgpt", "layers": 2}]}, Question(), PI, UnsupportedError, "shortgpt"),
    ],
)
def test_bad_input_is_one_line(
    checkpoint: Path, recipe: dict[str, Any], ask: Question, target: TargetProfile, error: type[InputError], words: str
) -> None:
    with pytest.raises(error, match=words):
        estimate(Recipe.model_validate({"model": str(checkpoint), **recipe}), target, ask)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in WHOLE])
def test_every_family_has_a_forecast(tmp_path: Path, name: str) -> None:
    """Tiny sizes of each layout, on a board that takes them."""
    synth(name, tmp_path / name, tiny=True, hollow=True)
    found = estimate(Recipe(model=str(tmp_path / name)), PI, Question(336, 336, answer_tokens=4))
    work = found.result.work
    assert work.vision_flops > 0 and work.image_tokens > 0 and found.result.forecast.fits
    held = sum(tensor.numel() for tensor in load(tmp_path / name).vision.parameters())
    assert work.weights[0].parameters == held


def test_a_model_that_a_format_cannot_hold_takes_the_next() -> None:
    """llama.cpp has no TinyGPT-V, though it is the board's first runtime."""
    recipe, ask = Recipe(model="zoo:nano-tinygpt-v"), Question(answer_tokens=4)
    assert PI.formats[0] == "gguf" and estimate(recipe, PI, ask).storage.format == "onnx"
    with pytest.raises(UnsupportedError, match="to gguf"):
        estimate(recipe.model_copy(update={"format": "gguf"}), PI, ask, "gguf")


def test_tensorrt_needs_a_gpu(checkpoint: Path) -> None:
    with pytest.raises(UnsupportedError, match="no NVIDIA GPU"):
        estimate(Recipe(model=str(checkpoint)), PI, Question(), "tensorrt")


def test_the_command_prints_a_table_and_the_same_as_json(checkpoint: Path) -> None:
    flags = [str(checkpoint), "--target", "jetson-orin-nano-super", "--answer-tokens", "8"]
    shown = CliRunner().invoke(command, flags)
    assert shown.exit_code == 0, shown.output
    for words in ("float16, as published", "decoder in int4", "fits: ", "21.1 W", "tokens/s", "format tensorrt"):
        assert words in shown.output
    data = json.loads(CliRunner().invoke(command, [*flags, "--json"]).output)
    last = data["steps"][-1]
    assert data["target"] == "jetson-orin-nano-super" and last["name"] == "decoder in int4"
    assert last["forecast"]["fits"] is True and last["forecast"]["short_bytes"] == 0
    assert last["forecast"]["answer_joules"] == pytest.approx(21.1 * last["forecast"]["answer_ms"] / 1000)
    assert f"{last['forecast']['tokens_per_second']:.1f}" in shown.output


def test_recipe_files_and_flags_go_together(checkpoint: Path, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(f"model: {checkpoint}\nformat: gguf\nprecision: int8\n", encoding="utf-8")
    flags = ["--recipe", str(file), "--target", "jetson-orin-nano", "--answer-tokens", "8", "--json"]
    data = json.loads(CliRunner().invoke(command, flags).output)
    assert data["format"] == "gguf" and data["steps"][-1]["name"] == "decoder in q8_0"
    assert data["constants"]["runtime"] == "llama_cpp"
