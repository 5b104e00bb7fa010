"""`edgevlm.load`: a bundle's own engines answer like the IR in torch, token by token."""

from pathlib import Path

import numpy as np
import pytest

import edgevlm
from edgevlm.bundle import Bundle
from edgevlm.errors import BundleError, InputError
from edgevlm.models.vlm import VlmModel
from edgevlm.runtimes.base import EngineOptions
from edgevlm.runtimes.torch import TorchDecoder, TorchVision
from edgevlm.session import Session
from edgevlm.tokenizer import Tokenizer

IMAGES = np.random.default_rng(0).integers(0, 256, (4, 2, 3, 3), dtype=np.uint8)
QUESTIONS = ["What number is written?", "How many circles are there?"]


@pytest.mark.parametrize("vision_engine", ["onnxruntime", "openvino"])
def test_greedy_tokens_equal_torch(model: VlmModel, bundle: Bundle, vision_engine: str) -> None:
    tokenizer = Tokenizer(bundle.path / "tokenizer.json")
    reference = Session(model.spec, tokenizer, TorchVision(model), TorchDecoder(model, EngineOptions()))
    seen = set()
    with edgevlm.load(bundle.path, vision_engine=vision_engine, threads=1) as session:
        for image in IMAGES:
            for question in QUESTIONS:
                answer = session.generate(image, question, max_tokens=12)
                assert answer.token_ids == reference.generate(image, question, max_tokens=12).token_ids
                seen.add(answer.token_ids)
    assert len(seen) > 1, "answers that never differ compare nothing"


def test_turns_equal_torch(model: VlmModel, bundle: Bundle) -> None:
    tokenizer = Tokenizer(bundle.path / "tokenizer.json")
    reference = Session(model.spec, tokenizer, TorchVision(model), TorchDecoder(model, EngineOptions())).chat()
    with edgevlm.load(bundle.path, vision_engine="onnxruntime", threads=1) as session:
        chat = session.chat()
        for question, image in (("What?", IMAGES[0]), ("And how many?", None), ("And this?", IMAGES[1])):
            actual = chat.ask(question, image, max_tokens=6)
            assert actual.token_ids == reference.ask(question, image, max_tokens=6).token_ids
        assert actual.stats.reused_tokens > 2 * 16


def test_stats_name_the_engines(bundle: Bundle) -> None:
    with edgevlm.load(str(bundle.path), vision_engine="openvino", decoder_engine="onnxruntime", threads=1) as session:
        stats = session.generate(IMAGES[0], "What?", max_tokens=2).stats
    assert stats.vision_engine.startswith("openvino 20")
    assert stats.decoder_engine.startswith("onnxruntime 1.")


def test_verify_notices_an_altered_tokenizer(bundle: Bundle, tmp_path: Path) -> None:
    for file in bundle.path.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    text = (tmp_path / "tokenizer.json").read_text()
    (tmp_path / "tokenizer.json").write_text(text.replace('"1.0"', '"1.1"', 1))
    with pytest.raises(BundleError, match="altered"):
        edgevlm.load(tmp_path, verify=True)


def test_options_out_of_range_are_refused(bundle: Bundle) -> None:
    with pytest.raises(InputError, match="threads"):
        edgevlm.load(bundle.path, threads=-1)
    with pytest.raises(InputError, match="context"):
        edgevlm.load(bundle.path, vision_engine="onnxruntime", context_length=-1)


def test_public_names_resolve() -> None:
    for name in edgevlm.__all__:
        assert getattr(edgevlm, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        _ = edgevlm.nonsense
