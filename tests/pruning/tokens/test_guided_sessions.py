"""Sessions of models whose image tokens are chosen by the question: what engines are asked, and what is reused."""

from pathlib import Path

import numpy as np
import pytest
from guided_fakes import guided_session

import edgevlm
from edgevlm.bench import method_cost
from edgevlm.bundle import open_bundle
from edgevlm.cli import main
from edgevlm.models import load, resolve
from edgevlm.pruning.tokens import REDUCERS
from edgevlm.runtimes.base import EngineOptions
from edgevlm.runtimes.select import open_vision
from edgevlm.runtimes.torch import TorchDecoder, TorchVision
from edgevlm.seeing import open_questions
from edgevlm.session import Session
from edgevlm.tokenizer import Tokenizer
from edgevlm.zoo.scenes import scenes

RED = np.full((10, 20, 3), (200, 0, 0), np.uint8)
BLUE = np.full((10, 20, 3), (0, 0, 200), np.uint8)
MODEL, KEEP = "zoo:nano-llava", 36
ITEMS = list(scenes("test", 24))


def test_an_image_is_remembered_with_its_question(tmp_path: Path) -> None:
    session, vision, text, _ = guided_session(tmp_path)
    first = session.generate(RED, "red?", max_tokens=4)
    again = session.generate(RED, "red?", max_tokens=4)
    assert (vision.encoded, len(text.encoded)) == (1, 1)
    assert (first.stats.image_cached, again.stats.image_cached) == (False, True)
    assert again.text == first.text
    other = session.generate(RED, "blue?", max_tokens=4)
    assert vision.encoded == 2
    assert not other.stats.image_cached
    assert other.stats.reused_tokens < again.stats.reused_tokens, "the cache holds the tokens of the other question"
    fresh, *_ = guided_session(tmp_path)
    assert fresh.generate(RED, "blue?", max_tokens=4).text == other.text


def test_the_images_of_a_turn_are_asked_the_same_and_keep_their_tokens_in_later_turns(tmp_path: Path) -> None:
    session, vision, _, _ = guided_session(tmp_path)
    chat = session.chat()
    chat.ask("which is red?", [RED, BLUE], max_tokens=4)
    assert len(vision.asked) == 2
    assert vision.asked[0] is vision.asked[1]
    later = chat.ask("and blue?", max_tokens=4)
    assert vision.encoded == 2, "a turn without an image encodes none"
    assert later.stats.reused_tokens > later.stats.image_tokens
    chat.ask("and this?", RED, max_tokens=4)
    assert vision.encoded == 3, "a new turn's image is asked the new question"
    assert vision.asked[2] is not vision.asked[0]


def test_closing_a_session_closes_its_text_engine(tmp_path: Path) -> None:
    session, _, text, _ = guided_session(tmp_path)
    session.close()
    assert text.closed


def answers(session: Session) -> list[tuple[int, ...]]:
    """Token ids for each item."""
    return [session.generate(item.image, item.question, max_tokens=8).token_ids for item in ITEMS]


@pytest.mark.parametrize(("form", "method"), [("onnx", "cdpruner"), ("gguf", "recoverable")])
def test_a_bundle_answers_like_the_pruned_model(
    form: str, method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    flags = ["--format", form, "--precision", "fp32", "--prune-tokens", f"{method}:{KEEP}"]
    with pytest.raises(SystemExit) as caught:
        main(["export", MODEL, "-o", str(out), *flags])
    assert caught.value.code == 0, capsys.readouterr().err
    bundle = open_bundle(out, verify=True)
    parity = {result.metric: result.value for result in bundle.manifest.parity}
    assert parity["kept_tokens"] == parity["token_agreement"] == 1
    roles = {entry.role for entry in bundle.manifest.artifacts}
    assert {"text", "text_tokenizer"} <= roles
    assert any("text_tower" in name for name in bundle.manifest.source_sha256)

    cls = REDUCERS[method]
    model = cls.reduced(load(resolve(MODEL)), KEEP, cls.Options())
    assert model.text_side is not None
    assert bundle.spec.vision.text == model.text_side.spec
    tokenizer = Tokenizer(model.tokenizer_files["tokenizer.json"])
    engines = TorchVision(model), TorchDecoder(model, EngineOptions())
    with Session(model.spec, tokenizer, *engines, questions=model.text_side.reader()) as session:
        wanted = answers(session)
    with edgevlm.load(out, vision_engine="onnxruntime") as session:
        assert answers(session) == wanted
    assert len(set(wanted)) > 5, "answers that do not depend on the image"

    reader = open_questions(bundle, EngineOptions())
    assert reader is not None
    pixels, question = np.random.default_rng(0).random((2, 3, 192, 192), np.float32), reader.embed("how many?")
    rows = [
        open_vision(bundle, name, EngineOptions(threads=1)).encode_guided(pixels, question)  # type: ignore[attr-defined]
        for name in ("onnxruntime", "openvino")
    ]
    np.testing.assert_allclose(rows[0], rows[1], atol=0.05 * np.abs(rows[0]).max())

    paths = [str(out), str(out)]
    arguments = {"engine": "onnxruntime", "threads": 1, "size": [96, 64], "seed": 0, "min_time_s": 0}
    costs = method_cost.serve(lambda _: None, paths, **arguments)  # type: ignore[arg-type]
    assert len(costs) == 20
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["inspect", str(out)])
    assert "chosen by the question: text tower of 2 layers of 128" in " ".join(capsys.readouterr().out.split())
