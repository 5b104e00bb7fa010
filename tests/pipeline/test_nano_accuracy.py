"""The shipped models, exported: they must answer like the originals, item by item and in accuracy."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

import edgevlm
from edgevlm.models import load, resolve
from edgevlm.pipeline import compile_recipe
from edgevlm.recipe import Recipe
from edgevlm.runtimes.base import EngineOptions
from edgevlm.runtimes.torch import TorchDecoder, TorchVision
from edgevlm.session import Session
from edgevlm.tokenizer import Tokenizer
from edgevlm.zoo import evaluate, models
from edgevlm.zoo.scenes import Item, scenes

ITEMS = list(scenes("test", 600))
#: llama.cpp has no such decoder.
WITHOUT = {("nano-tinygpt-v", "gguf")}
Answers = list[tuple[str, tuple[int, ...]]]


def ask(session: Session, items: list[Item]) -> Answers:
    """Text and token ids of each greedy answer."""
    answers = [session.generate(item.image, item.question, max_tokens=8) for item in items]
    return [(answer.text, answer.token_ids) for answer in answers]


def accuracy(texts: list[str]) -> float:
    """Exact match, in percent."""
    return 100 * sum(text == item.answer for text, item in zip(texts, ITEMS, strict=True)) / len(ITEMS)


@pytest.fixture(scope="module")
def original_accuracy() -> Callable[[str], float]:
    @cache
    def measure(name: str) -> float:
        model = load(resolve(f"zoo:{name}"))
        model.vision.float()
        model.decoder.float()
        if model.fusion is not None:
            model.fusion.float()
        return accuracy(evaluate.answers(model, ITEMS))

    return measure


def export(name: str, kind: str, precision: str, out: Path) -> Path:
    recipe = Recipe.model_validate({"model": f"zoo:{name}", "format": kind, "precision": precision})
    return compile_recipe(recipe, out, progress=lambda *_: None).path


def test_fp32_onnx_gives_the_same_tokens_as_torch_on_200_items(tmp_path: Path) -> None:
    original = load(resolve("zoo:nano-fastvlm"))
    tokenizer = Tokenizer(original.tokenizer_files["tokenizer.json"])
    engines = TorchVision(original), TorchDecoder(original, EngineOptions())
    with Session(original.spec, tokenizer, *engines) as session:
        expected = ask(session, ITEMS[:200])
    bundle = export("nano-fastvlm", "onnx", "fp32", tmp_path / "bundle")
    with edgevlm.load(bundle, vision_engine="onnxruntime") as session:
        assert ask(session, ITEMS[:200]) == expected


@pytest.mark.parametrize(("precision", "loss"), [("int8", 1), ("int4", 2)])
@pytest.mark.parametrize(
    ("name", "kind"), [(name, kind) for name in models() for kind in ("onnx", "gguf") if (name, kind) not in WITHOUT]
)
def test_few_bits_lose_few_points(
    name: str, kind: str, precision: str, loss: float, original_accuracy: Callable[[str], float], tmp_path: Path
) -> None:
    assert original_accuracy(name) >= 90
    with edgevlm.load(export(name, kind, precision, tmp_path / "bundle")) as session:
        assert accuracy([text for text, _ in ask(session, ITEMS)]) >= original_accuracy(name) - loss
