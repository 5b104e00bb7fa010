"""The shipped model, exported: it must answer like the original, item by item and in accuracy."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

import edgevlm
from edgevlm.models import VlmModel, load, resolve
from edgevlm.pipeline import compile_recipe
from edgevlm.recipe import Recipe
from edgevlm.runtimes.base import EngineOptions
from edgevlm.runtimes.torch import TorchDecoder, TorchVision
from edgevlm.session import Session
from edgevlm.tokenizer import Tokenizer
from edgevlm.zoo import evaluate
from edgevlm.zoo.scenes import Item, scenes

ITEMS = list(scenes("test", 600))
Export = Callable[[str, str], Path]
Answers = list[tuple[str, tuple[int, ...]]]


def ask(session: Session, items: list[Item]) -> Answers:
    """Text and token ids of each greedy answer."""
    answers = [session.generate(item.image, item.question, max_tokens=8) for item in items]
    return [(answer.text, answer.token_ids) for answer in answers]


def accuracy(texts: list[str]) -> float:
    """Exact match, in percent."""
    return 100 * sum(text == item.answer for text, item in zip(texts, ITEMS, strict=True)) / len(ITEMS)


@pytest.fixture(scope="module")
def original() -> VlmModel:
    return load(resolve("zoo:nano-fastvlm"))


@pytest.fixture(scope="module")
def original_accuracy() -> float:
    model = load(resolve("zoo:nano-fastvlm"))
    model.vision.float()
    model.decoder.float()
    return accuracy(evaluate.answers(model, ITEMS))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Export:
    folder = tmp_path_factory.mktemp("nano")

    @cache
    def export(kind: str, precision: str) -> Path:
        recipe = Recipe.model_validate({"model": "zoo:nano-fastvlm", "format": kind, "precision": precision})
        return compile_recipe(recipe, folder / f"{kind}-{precision}", progress=lambda *_: None).path

    return export


def test_fp32_onnx_gives_the_same_tokens_as_torch_on_200_items(bundle: Export, original: VlmModel) -> None:
    tokenizer = Tokenizer(original.tokenizer_files["tokenizer.json"])
    engines = TorchVision(original), TorchDecoder(original, EngineOptions())
    with Session(original.spec, tokenizer, *engines) as session:
        expected = ask(session, ITEMS[:200])
    with edgevlm.load(bundle("onnx", "fp32"), vision_engine="onnxruntime") as session:
        assert ask(session, ITEMS[:200]) == expected


@pytest.mark.parametrize("kind", ["onnx", "gguf"])
def test_int4_loses_at_most_two_points(kind: str, bundle: Export, original_accuracy: float) -> None:
    assert original_accuracy >= 90
    with edgevlm.load(bundle(kind, "int4")) as session:
        assert accuracy([text for text, _ in ask(session, ITEMS)]) >= original_accuracy - 2
