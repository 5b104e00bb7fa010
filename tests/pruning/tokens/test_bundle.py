"""From `edgevlm export --prune-tokens` to answers: a bundle of fewer tokens answers like the pruned model in torch."""

import json
from pathlib import Path

import pytest

import edgevlm
from edgevlm.bundle import open_bundle
from edgevlm.cli import main
from edgevlm.models import load, resolve
from edgevlm.pruning.tokens import REDUCERS
from edgevlm.runtimes.base import EngineOptions
from edgevlm.runtimes.torch import TorchDecoder, TorchVision
from edgevlm.session import Session
from edgevlm.tokenizer import Tokenizer
from edgevlm.zoo.scenes import scenes

MODEL, KEEP = "zoo:nano-fastvlm", 16
ITEMS = list(scenes("test", 24))


def answers(session: Session) -> list[tuple[str, tuple[int, ...], int]]:
    """Text, token ids and positions of the image, for each item."""
    found = [session.generate(item.image, item.question, max_tokens=8) for item in ITEMS]
    return [(answer.text, answer.token_ids, answer.stats.image_tokens) for answer in found]


def in_torch(method: str) -> list[tuple[str, tuple[int, ...], int]]:
    """What the pruned model answers in torch."""
    cls = REDUCERS[method]
    model = cls.reduced(load(resolve(MODEL)), KEEP, cls.Options())
    tokenizer = Tokenizer(model.tokenizer_files["tokenizer.json"])
    engines = TorchVision(model), TorchDecoder(model, EngineOptions())
    with Session(model.spec, tokenizer, *engines) as session:
        return answers(session)


@pytest.mark.parametrize(("form", "method"), [("onnx", "divprune"), ("gguf", "attention")])
def test_a_bundle_answers_like_the_pruned_model(
    form: str, method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    flags = ["--format", form, "--precision", "fp32", "--prune-tokens", f"{method}:{KEEP}"]
    with pytest.raises(SystemExit) as caught:
        main(["export", MODEL, "-o", str(out), *flags])
    assert caught.value.code == 0, capsys.readouterr().err
    bundle = open_bundle(out)
    assert bundle.spec.vision.image_tokens == KEEP
    assert [entry["method"] for entry in bundle.manifest.recipe["passes"]] == [method]
    parity = {result.metric: result.value for result in bundle.manifest.parity}
    assert parity["kept_tokens"] == parity["token_agreement"] == 1
    if form == "onnx":
        processor = json.loads((out / "processor_config.json").read_text())
        squares = (bundle.spec.vision.image_size // processor["patch_size"]) ** 2
        assert squares + processor["num_additional_image_tokens"] == KEEP
    wanted = in_torch(method)
    with edgevlm.load(out) as session:
        assert answers(session) == wanted
    assert {tokens for _, _, tokens in wanted} == {KEEP}
    assert len({text for text, _, _ in wanted}) > 5, "answers that do not depend on the image"
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["inspect", str(out)])
    assert f"to {KEEP} tokens ({method} keeps {KEEP}" in capsys.readouterr().out
