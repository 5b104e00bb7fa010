"""A decoder taken over from another bundle is the one that would have been written, or it is not taken."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgevlm.bundle import Bundle, open_bundle
from edgevlm.pipeline import compile_recipe
from edgevlm.pipeline.reuse import take_over
from edgevlm.recipe import Recipe
from edgevlm.zoo.synth import synth


def silent(_done: float, _total: float, _what: str) -> None:
    """A progress nobody watches."""


#: Answers of random weights are noise.
THRESHOLDS = {"top1_agreement": 0, "token_agreement": 0}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    synth("llava-1.5-7b", folder, tiny=True)
    return folder


def recipe(checkpoint: Path, keep: int = 0, **fields: Any) -> Recipe:
    """Of the tiny model, with so many tokens left."""
    entries = [{"name": "prune_tokens", "method": "fastervlm", "keep": keep}] if keep else []
    return Recipe.model_validate(
        {"model": str(checkpoint), "precision": "fp32", "passes": entries, "verify": THRESHOLDS, **fields}
    )


def contents(bundle: Bundle) -> dict[str, bytes]:
    return {path.relative_to(bundle.path).as_posix(): path.read_bytes() for path in bundle.path.rglob("*.*")}


def shared(first: Bundle, second: Bundle) -> set[str]:
    """Files that are one on the disk."""
    names = {entry.path for entry in second.manifest.artifacts}
    return {
        entry.path
        for entry in first.manifest.artifacts
        if entry.path in names and (first.path / entry.path).samefile(second.path / entry.path)
    }


@pytest.fixture(scope="module")
def full(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The bundle of the whole model, in ONNX."""
    return compile_recipe(recipe(checkpoint), tmp_path_factory.mktemp("full") / "onnx", progress=silent)


@pytest.mark.parametrize("format_", ["onnx", "gguf"])
def test_a_bundle_with_a_decoder_taken_over_is_the_same_bundle(
    checkpoint: Path, full: Bundle, tmp_path: Path, format_: str
) -> None:
    if format_ == "gguf":
        full = compile_recipe(recipe(checkpoint, format=format_), tmp_path / "full", progress=silent)
    asked = recipe(checkpoint, 4, format=format_)
    alone = compile_recipe(asked, tmp_path / "alone", progress=silent)
    taking = compile_recipe(asked, tmp_path / "taking", like=full, progress=silent)
    assert contents(taking) == contents(alone)
    assert open_bundle(taking.path, verify=True).spec.vision.image_tokens == 4
    decoders = {"onnx": ("decoder_model_merged", "embed_tokens"), "gguf": ("model-f32",)}[format_]
    held = shared(full, taking)
    assert {Path(name).stem for name in held} == set(decoders)
    assert shared(full, alone) == set()


def taken(full: Bundle, asked: Recipe, out: Path, **changes: Any) -> set[str]:
    """Roles of what is taken over; `changes` are to what the new bundle would be."""
    known = {"spec": full.spec, "sources": full.manifest.source_sha256, "tools": full.manifest.tools}
    return {artifact.role for artifact in take_over(asked, like=full, out=out, **{**known, **changes})}


def test_a_decoder_that_may_differ_is_not_taken(checkpoint: Path, full: Bundle, tmp_path: Path) -> None:
    manifest, decoder = full.manifest, full.spec.decoder
    assert taken(full, recipe(checkpoint, 4), tmp_path / "out") == {"decoder", "embed"}
    others: list[tuple[Recipe, dict[str, Any]]] = [
        (recipe(checkpoint, precision="fp16"), {}),
        (recipe(checkpoint, passes=[{"name": "prune_weights", "method": "magnitude", "sparsity": 0.5}]), {}),
        (recipe(checkpoint), {"sources": dict.fromkeys(manifest.source_sha256, "0" * 64)}),
        (recipe(checkpoint), {"tools": {**manifest.tools, "edgevlm": "99"}}),
        (recipe(checkpoint), {"spec": replace(full.spec, decoder=replace(decoder, rope_theta=2 * decoder.rope_theta))}),
    ]
    for asked, changes in others:
        assert taken(full, asked, tmp_path / "other", **changes) == set()
    assert not (tmp_path / "other").exists()
