"""A bundle answers alike in transformers.js and in our session. Needs Node.js and `npm ci` here: `make interop`."""

import json
import shutil
import subprocess
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import pytest

from edgevlm import load
from edgevlm.pipeline import compile_recipe
from edgevlm.recipe import Precision, Recipe
from edgevlm.zoo.scenes import Item, scenes

HERE = Path(__file__).parent
MAX_NEW_TOKENS = 8
#: Images of the model's own size, so that nothing is resized: the two libraries resize differently.
SIDE = 512

pytestmark = pytest.mark.skipif(
    shutil.which("node") is None or not (HERE / "node_modules").is_dir(),
    reason="transformers.js is not installed; run `make interop`",
)


def transformers_js(bundle: Path, image: Path, questions: list[str]) -> list[dict[str, list[int]]]:
    command = ["node", str(HERE / "generate.mjs"), str(bundle), str(image), str(SIDE), str(MAX_NEW_TOKENS), *questions]
    run = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    return [json.loads(line) for line in run.stdout.splitlines()]


def one_image() -> list[Item]:
    items = list(islice(scenes("test", 6, seed=3, size=SIDE), 6))
    return [item for item in items if item.image_id == items[0].image_id]


@pytest.mark.parametrize(("precision", "vision_precision"), [("fp32", "fp32"), ("int4", "fp16"), ("int8", "int8")])
def test_same_tokens_as_our_session(precision: Precision, vision_precision: Precision, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    recipe = Recipe(model="zoo:nano-fastvlm", precision=precision, vision_precision=vision_precision)
    prompt = compile_recipe(recipe, out, progress=lambda *_: None).spec.prompt
    items = one_image()
    image = tmp_path / "image.rgb"
    image.write_bytes(items[0].image.tobytes())
    theirs = transformers_js(out, image, [item.question for item in items])
    assert len(theirs) == len(items) >= 2
    with load(out, vision_engine="onnxruntime", decoder_engine="onnxruntime") as session:
        for item, answer in zip(items, theirs, strict=True):
            ours = session.generate(item.image, item.question, max_tokens=MAX_NEW_TOKENS)
            assert answer["prompt"].count(prompt.image_token_id) == ours.stats.image_tokens
            assert len(answer["prompt"]) == ours.stats.prompt_tokens
            assert ours.token_ids
            assert without(answer["generated"], prompt.stop_token_ids) == without(ours.token_ids, prompt.stop_token_ids)


def without(ids: Sequence[int], stops: Sequence[int]) -> list[int]:
    """Whether the stop token itself is returned is each library's choice."""
    return [token for token in ids if token not in stops]
