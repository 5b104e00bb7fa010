"""Every method of the list through the whole: exported, loaded, asked about 64 images, beside the same model in torch.

A method that no model here can take fails, so that none is listed without having been held to this. Images are one
square here; what is shared out among tiles is in the tests of that.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reducer_models import CLIP, FASTVITHD, scene_pixels, vision_model, vision_spec
from tiny import DECODER, tiny_model

import edgevlm
from edgevlm import pipeline
from edgevlm.bundle import ParityResult
from edgevlm.errors import UnsupportedError
from edgevlm.models.text_side import TextSide
from edgevlm.models.text_tower import PatchHead, TextTower
from edgevlm.models.vlm import VlmModel
from edgevlm.pruning.tokens import CHOOSERS, REDUCERS
from edgevlm.recipe import CalibrationData, PassEntry, Recipe
from edgevlm.runtimes.base import EngineOptions, Float32
from edgevlm.runtimes.onnxruntime import OnnxRuntimeVision
from edgevlm.runtimes.torch import TorchDecoder, TorchVision
from edgevlm.session import Session
from edgevlm.spec import EncoderSpec, TextTowerSpec, VitSpec
from edgevlm.tokenizer import Tokenizer
from edgevlm.zoo.scenes import Item, scenes

IMAGES, ANSWER = 64, 3


@dataclass(frozen=True)
class Subject:
    """A model whose images have `side` by `side` tokens, of which `keep` are kept."""

    encoder: EncoderSpec
    side: int
    keep: int

    def model(self, tokenizer: Path) -> VlmModel:
        """Random weights; four layers, so that a decoder has room for stages.

        Its image tokens have mean 0 and deviation 2 over the scenes, so that they decide the answers.
        """
        vision = vision_spec(self.encoder, self.side)
        decoder = replace(DECODER, num_hidden_layers=4, max_position_embeddings=512)
        whole = tiny_model(decoder)
        spec = replace(
            whole.spec, vision=vision, preprocess=replace(whole.spec.preprocess, image_size=vision.image_size)
        )
        made = vision_model(vision, hidden=decoder.hidden_size)
        text = text_side(self.encoder, tokenizer) if isinstance(self.encoder, VitSpec) else None
        last: Any = made.projector.linear_2
        tokens = made(scene_pixels(vision.image_size)[:16]).flatten(0, 1)
        spread = tokens.std(dim=0) / 2
        last.weight.div_(spread[:, None])
        last.bias.sub_(tokens.mean(dim=0)).div_(spread)
        spec = replace(spec, text_tower=None if text is None else text.spec)
        files = {"tokenizer.json": tokenizer}
        return replace(whole, spec=spec, vision=made, tokenizer_files=files, text_side=text)


def text_side(encoder: VitSpec, tokenizer: Path) -> TextSide:
    """A random text tower."""
    torch.manual_seed(3)
    spec = TextTowerSpec(DECODER.vocab_size, 32, 64, 2, 4, 77, 16, end_token_id=1020)
    tower, patches = TextTower(spec), PatchHead(encoder.hidden_size, 16, 1e-5)
    for weight in tower.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return TextSide(spec, tower.eval().requires_grad_(False), patches.eval().requires_grad_(False), tokenizer, ())


#: The first that a method can be used on is taken.
SUBJECTS = (Subject(CLIP, 6, 9), Subject(FASTVITHD, 3, 4))


@pytest.fixture(scope="module")
def items() -> list[Item]:
    """A question about each of 64 images."""
    found = {item.image_id: item for item in scenes("test", 6 * IMAGES)}
    assert len(found) >= IMAGES
    return list(found.values())[:IMAGES]


def answers(session: Session, items: list[Item]) -> list[tuple[tuple[int, ...], int]]:
    """Token ids, and positions of the image, for each item."""
    found = [session.generate(item.image, item.question, max_tokens=ANSWER, ignore_eos=True) for item in items]
    return [(answer.token_ids, answer.stats.image_tokens) for answer in found]


def seen(engine: type[Any], patch: pytest.MonkeyPatch) -> list[Float32]:
    """What an engine returns from now on."""
    found: list[Float32] = []

    def watch(name: str) -> None:
        encode: Callable[..., Float32] = getattr(engine, name)

        def noted(*arguments: Any) -> Float32:
            found.append(encode(*arguments))
            return found[-1]

        patch.setattr(engine, name, noted)

    watch("encode")
    watch("encode_guided")
    return found


def exported(method: str, tokenizer: Path, folder: Path, patch: pytest.MonkeyPatch) -> tuple[VlmModel, Path]:
    """A bundle of the first model that takes the method, and the pruned model that verification is given."""
    pruned: list[VlmModel] = []
    reasons = []
    patch.setattr(pipeline, "resolve", lambda _: folder)

    def verify(model: VlmModel, *_: Any) -> list[ParityResult]:
        pruned.append(model)
        return []

    patch.setattr(pipeline, "verify", verify)
    for number, subject in enumerate(SUBJECTS):

        def load(_: Path, *, accept: Any, subject: Subject = subject, **__: Any) -> VlmModel:
            made = subject.model(tokenizer)
            accept(made.spec)
            return made

        patch.setattr(pipeline, "load", load)
        keep = {} if method in CHOOSERS else {"keep": subject.keep}
        # Answers of random weights change with any token that goes.
        options = {"options": {"tolerance": 0.9}} if method == "gsearch" else {}
        entry = PassEntry.model_validate({"name": "prune_tokens", "method": method, **keep, **options})
        calibration = CalibrationData(source="scenes", n=8)
        recipe = Recipe(
            model="tiny", precision="fp32", vision_precision="fp32", passes=(entry,), calibration=calibration
        )
        try:
            bundle = pipeline.compile_recipe(recipe, folder / str(number), progress=lambda *_: None)
        except UnsupportedError as error:
            reasons.append(error.what)
            continue
        return pruned[0], bundle.path
    pytest.fail(f"no model of this test takes {method}: {'; '.join(reasons)}")


@pytest.mark.parametrize("method", [*REDUCERS, *CHOOSERS])
def test_a_session_keeps_the_tokens_and_gives_the_answers_of_the_torch_model(
    method: str, tokenizer: Path, items: list[Item], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, bundle = exported(method, tokenizer, tmp_path, monkeypatch)
    ours, theirs = seen(OnnxRuntimeVision, monkeypatch), seen(TorchVision, monkeypatch)
    with edgevlm.load(bundle, vision_engine="onnxruntime", decoder_engine="onnxruntime", threads=1) as session:
        found = answers(session, items)
    engines = TorchVision(model), TorchDecoder(model, EngineOptions(threads=1))
    side = model.text_side if model.spec.vision.text is not None else None
    questions = None if side is None else side.reader()
    with Session(model.spec, Tokenizer(tokenizer), *engines, questions=questions) as session:
        wanted = answers(session, items)
    differ = [
        index
        for index, pair in enumerate(zip(ours, theirs, strict=True))
        if not np.allclose(*pair, rtol=1e-3, atol=1e-3)
    ]
    assert len(ours) == IMAGES
    assert not differ, f"other tokens of {len(differ)} images"
    assert found == wanted
    assert len({tokens for tokens, _ in wanted}) > 4, "answers that hardly depend on image and question"
