"""Tokens shared out among tiles, from a recipe to answers: bundles keep what the pruned model keeps in torch."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from reducer_models import CLIP, SIGLIP, vision_model, vision_spec
from tiny import DECODER, tiny_model

import edgevlm
from edgevlm import pipeline
from edgevlm.assembly import ImageAssembler
from edgevlm.bundle import open_bundle
from edgevlm.cli import main
from edgevlm.feature_rows import load_newline
from edgevlm.imageio import load_image
from edgevlm.models.vlm import VlmModel
from edgevlm.preprocess import PreparedImage, prepare
from edgevlm.pruning.tokens import REDUCERS
from edgevlm.recipe import PassEntry, Recipe
from edgevlm.runtimes import open_vision
from edgevlm.runtimes.base import EngineOptions
from edgevlm.runtimes.torch import TorchDecoder, TorchVision
from edgevlm.session import Session
from edgevlm.spec import AnyresTiles, AspectTiles, RowsLayout
from edgevlm.tile_tokens import encode_image
from edgevlm.tokenizer import Tokenizer
from edgevlm.zoo.scenes import scenes

IMAGES, ASKED, ANSWER = 64, 12, 3
CANVASES = AnyresTiles(((48, 96), (96, 48), (96, 96), (144, 48)), cut_several=True)


@dataclass(frozen=True)
class Family:
    """How a kind of model sees images, at 6 by 6 patches a tile."""

    encoder: Any
    tiles: Any
    layout: Any
    shuffle: int = 1

    def model(self, tokenizer: Path) -> VlmModel:
        """Random weights."""
        vision = vision_spec(self.encoder, shuffle=self.shuffle)
        decoder = replace(DECODER, max_position_embeddings=1024)
        whole = tiny_model(decoder)
        spec = replace(
            whole.spec,
            vision=vision,
            preprocess=replace(whole.spec.preprocess, image_size=vision.image_size, fit="stretch", tiles=self.tiles),
            prompt=replace(whole.spec.prompt, image_layout=self.layout),
        )
        newline = torch.randn(decoder.hidden_size, generator=torch.Generator().manual_seed(1))
        return replace(
            whole,
            spec=spec,
            vision=vision_model(vision, hidden=decoder.hidden_size),
            tokenizer_files={"tokenizer.json": tokenizer},
            image_newline=None if self.layout is None else newline,
        )


#: LLaVA-NeXT, InternVL, and LLaVA-OneVision, whose encoder has no class token.
FAMILIES = {
    "next": Family(CLIP, CANVASES, RowsLayout(4)),
    "internvl": Family(CLIP, AspectTiles(1, 6), None, shuffle=2),
    "onevision": Family(SIGLIP, replace(CANVASES, cut_several=False), RowsLayout(2)),
}


@pytest.fixture(scope="module")
def questions() -> list[tuple[NDArray[np.uint8], str]]:
    """A question about each of 64 images of many shapes; the last is a hairline."""
    found = {item.image_id: item for item in scenes("test", 6 * IMAGES)}
    rng, made = np.random.default_rng(0), []
    for item in list(found.values())[:IMAGES]:
        height, width = rng.integers(24, min(item.image.shape[:2]), 2)
        made.append((item.image[:height, :width], item.question))
    made[-1] = made[-1][0][:1].repeat(9, axis=1), made[-1][1]
    assert len(made) == IMAGES
    return made


def compiled(
    model: VlmModel, method: str, keep: int, form: Any, folder: Path, patch: pytest.MonkeyPatch
) -> tuple[VlmModel, Path]:
    """The pruned model, and its bundle, verified."""
    patch.setattr(pipeline, "resolve", lambda _: folder)
    patch.setattr(pipeline, "load", lambda *_, accept, **__: accept(model.spec) or model)
    entry = PassEntry.model_validate({"name": "prune_tokens", "method": method, "keep": keep})
    recipe = Recipe(model="tiny", format=form, precision="fp32", passes=(entry,))
    cls = REDUCERS[method]
    pruned = cls.reduced(model, keep, cls.Options())
    return pruned, pipeline.compile_recipe(recipe, folder / "out", progress=lambda *_: None).path


def answers(session: Session, questions: list[tuple[NDArray[np.uint8], str]]) -> list[tuple[tuple[int, ...], int]]:
    """Token ids, and positions of the image."""
    found = [session.generate(image, asked, max_tokens=ANSWER, ignore_eos=True) for image, asked in questions]
    return [(answer.token_ids, answer.stats.image_tokens) for answer in found]


def counts(places: NDArray[np.int64], image: PreparedImage, tokens: int) -> tuple[int, ...]:
    return tuple(np.bincount(places[places >= 0] // tokens, minlength=len(image.tiles)).tolist())


@pytest.mark.parametrize(
    ("family", "method", "keep", "form"),
    [
        ("next", "hired", 7, "onnx"),
        ("next", "globalcom2", 12, "gguf"),
        ("internvl", "hired", 3, "onnx"),
        ("onevision", "attention", 9, "onnx"),
    ],
)
def test_a_bundle_keeps_the_tokens_of_the_torch_model_and_answers_like_it(
    family: str,
    method: str,
    keep: int,
    form: str,
    tokenizer: Path,
    questions: list[tuple[NDArray[np.uint8], str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model, folder = compiled(FAMILIES[family].model(tokenizer), method, keep, form, tmp_path, monkeypatch)
    bundle = open_bundle(folder)
    spec, tokens = bundle.spec, model.spec.vision.grid_side**2
    assert spec == model.spec
    parity = {result.metric: result.value for result in bundle.manifest.parity}
    assert parity["kept_tokens"] == parity["token_agreement"] == 1
    prepared = [prepare(load_image(image), spec.preprocess) for image, _ in questions]
    assembler = ImageAssembler(spec, Tokenizer(tokenizer), load_newline(bundle))
    engines = {name: open_vision(bundle, name, EngineOptions(threads=1)) for name in ("onnxruntime", "openvino")}
    reference, shares = TorchVision(model), set()
    for number, image in enumerate(prepared):
        wanted = encode_image(reference, image, spec)
        assert wanted.places is not None
        shares.add(counts(wanted.places, image, tokens))
        assert sum(map(len, assembler.pieces(wanted.rows, image, wanted.places))) == assembler.positions(image)
        for name in engines if number < ASKED else ["onnxruntime"]:
            found = encode_image(engines[name], image, spec)
            np.testing.assert_array_equal(found.places, wanted.places, err_msg=f"{name}, image {number}")
            np.testing.assert_allclose(found.rows, wanted.rows, rtol=1e-3, atol=1e-3)
    assert len(shares) > (3 if method == "attention" else IMAGES / 6), "tiles that always keep the same prove nothing"
    newline = None if model.image_newline is None else model.image_newline.numpy()
    decoder = TorchDecoder(model, EngineOptions(threads=1))
    with Session(spec, Tokenizer(tokenizer), reference, decoder, newline) as session:
        expected = answers(session, questions[-ASKED:])
    with edgevlm.load(folder, vision_engine="onnxruntime", threads=1, context_length=512) as session:
        assert answers(session, questions[-ASKED:]) == expected
    assert len({tokens for tokens, _ in expected}) > 2, "answers that hardly depend on image and question"
    with pytest.raises(SystemExit):
        main(["inspect", str(folder)])
    assert f"{method} keeps {keep} of a tile on average" in " ".join(capsys.readouterr().out.split())
