"""From `--prune-tokens sms` to answers: what was chosen is told, and exported again it is the same bundle."""

import json
from pathlib import Path
from typing import Any

import pytest

import edgevlm
from edgevlm.bundle import Bundle, open_bundle
from edgevlm.cli import main
from edgevlm.models import load, resolve
from edgevlm.passes import PassContext
from edgevlm.pipeline import compile_recipe
from edgevlm.pipeline.passes import parse_passes
from edgevlm.recipe import Recipe
from edgevlm.runtimes.base import EngineOptions
from edgevlm.runtimes.torch import TorchDecoder, TorchVision
from edgevlm.session import Session
from edgevlm.tokenizer import Tokenizer
from edgevlm.zoo.scenes import scenes

ITEMS = list(scenes("test", 24))
CHOSEN = {
    "sms": ("zoo:nano-llava", "sms", "cls-similarity"),
    "gsearch": ("zoo:nano-fastvlm", "gsearch,tolerance=0.25,stages=2", "pyramiddrop"),
}


def run(*arguments: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    assert caught.value.code == 0


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def answers(session: Session) -> list[tuple[int, ...]]:
    return [session.generate(item.image, item.question, max_tokens=8).token_ids for item in ITEMS]


def in_torch(recipe: Recipe) -> list[tuple[int, ...]]:
    """What the model with the chosen method answers in torch."""
    original = load(resolve(recipe.model))
    (each,) = parse_passes(recipe)
    model = each.run(original, PassContext(None, original, lambda *_: None))
    tokenizer = Tokenizer(model.tokenizer_files["tokenizer.json"])
    with Session(model.spec, tokenizer, TorchVision(model), TorchDecoder(model, EngineOptions())) as session:
        return answers(session)


@pytest.mark.parametrize("name", CHOSEN)
def test_what_was_chosen_is_an_ordinary_bundle(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, flag, method = CHOSEN[name]
    out = tmp_path / "out"
    common = [model, "--precision", "fp32", "--prune-tokens"]
    run("export", *common, flag, "--calibrate", "scenes", "-n", "8", "-o", str(out))
    said = capsys.readouterr().out
    bundle = open_bundle(out)
    (entry,) = bundle.manifest.recipe["passes"]
    assert entry["method"] == method
    assert entry["chosen"].startswith(f"{name} chose ")
    assert bundle.spec.notes == (entry["chosen"],)
    assert f"note: {entry['chosen']}" in said
    assert kept(bundle) == entry["keep"] < 64
    run("inspect", str(out))
    told = " ".join(capsys.readouterr().out.split())
    assert f"note {entry['chosen'].split(':')[0]}" in told
    assert f"{method} keeps" in told

    recipe = Recipe.model_validate(bundle.manifest.recipe)
    if name == "sms":
        compile_recipe(recipe, tmp_path / "again", progress=lambda *_: None)
        assert files(tmp_path / "again") == files(out), "the recipe in the manifest makes the same bundle"
    else:
        options = "".join(f",{option}={value}" for option, value in entry["options"].items())
        run("export", *common, f"{method}:{entry['keep']}{options}", "-o", str(tmp_path / "written"))
        chosen, written = files(out), files(tmp_path / "written")
        manifests = [json.loads(each.pop("manifest.json")) for each in (chosen, written)]
        assert chosen == written, "what was chosen, written out, makes the same files"
        assert without_provenance(manifests[0]) == without_provenance(manifests[1])

    wanted = in_torch(recipe)
    with edgevlm.load(out) as session:
        assert answers(session) == wanted
    assert len(set(wanted)) > 5, "answers that do not depend on the image"


def kept(bundle: Bundle) -> int:
    """Tokens of an image that reach the last layer."""
    drop = bundle.spec.decoder.token_drop
    return drop.stages[-1].keep if drop is not None else bundle.spec.vision.image_tokens


def without_provenance(manifest: dict[str, Any]) -> dict[str, Any]:
    """A manifest without what says that the count was chosen, and from what."""
    manifest.pop("recipe")
    manifest["spec"].pop("notes", None)
    return manifest
