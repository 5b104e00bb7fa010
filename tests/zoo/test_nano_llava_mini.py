"""The nano LLaVA-Mini: it grows out of a LLaVA, trains with packed questions, and is published for our loader."""

from pathlib import Path

import numpy as np
import pytest
import torch
from nano_specs import LLAVA
from nano_specs import LLAVA_MINI as SPEC
from torch import Tensor

from edgevlm import zoo
from edgevlm.models import load
from edgevlm.zoo.batches import SCENE_STREAM, pack, pixels, questions_for, train_scene
from edgevlm.zoo.evaluate import greedy
from edgevlm.zoo.fused import fuse
from edgevlm.zoo.llava_layout import write_llava
from edgevlm.zoo.llava_mini_layout import write_llava_mini
from edgevlm.zoo.losses import ahead_loss
from edgevlm.zoo.nano import CHATML, NanoVLM
from edgevlm.zoo.publish import publish
from edgevlm.zoo.scenes import Question
from edgevlm.zoo.start_values import initialise
from edgevlm.zoo.tokenizer import build_tokenizer
from edgevlm.zoo.train import train_nano
from edgevlm.zoo.trainer import Settings, Trainer

SETTINGS = Settings(
    spec=SPEC,
    images={"fusion": 6},
    batch={"fusion": 2},
    peak_rate={"fusion": 1e-3},
    pool=4,
    validation_scenes=4,
    validate_every=3,
    start_from="nano-llava",
)


@pytest.fixture
def llava(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NanoVLM:
    """A LLaVA of random weights, shipped as `zoo:nano-llava`."""
    model = NanoVLM(LLAVA).eval()
    initialise(model, 0)
    model.half().float()
    publish(tmp_path / "shipped" / "nano-llava", write_llava, LLAVA, model.state_dict(), build_tokenizer(), "card")
    monkeypatch.setattr(zoo, "_MODELS", tmp_path / "shipped")
    return model


@pytest.fixture
def model() -> NanoVLM:
    made = NanoVLM(SPEC).eval()
    initialise(made, 1)
    return made.half().float()


def test_it_starts_as_the_llava_that_it_grows_out_of(llava: NanoVLM, tmp_path: Path) -> None:
    """Towers equal; and the decoder, whose own layers add nothing yet, says what its last norm and head say of the
    pre-fusion, whose layers are the LLaVA's."""
    mini = Trainer(SETTINGS, tmp_path).model.eval()
    for name, value in llava.state_dict().items():
        if name.startswith(("vision.", "text.", "projector.")):
            assert torch.equal(mini.state_dict()[name], value), name
    image, text = torch.randn(1, 17, 128), torch.randn(1, 6, 128)
    assert mini.fusion is not None
    with torch.inference_mode():
        fused = mini.fusion(image, text)
        said, _ = mini.decoder(fused, torch.arange(7)[None])
        wanted, _ = llava.decoder(torch.cat((image, text), dim=1), torch.arange(23)[None])
    torch.testing.assert_close(said, wanted[:, 16:], rtol=1e-4, atol=1e-4)


def test_packed_questions_are_fused_as_each_is_alone(model: NanoVLM) -> None:
    """Through the module that runs at prefill: rows of prompts equal, those of answers are the raw embeddings."""
    tokenizer, fusion = build_tokenizer(), model.fusion
    assert fusion is not None
    scene, _ = train_scene(SCENE_STREAM, 0, 3, 64)
    asked = questions_for(scene, np.random.default_rng(0))
    packed = pack([asked], tokenizer, 1, CHATML)
    image = torch.randn(1, 17, 128, generator=torch.Generator().manual_seed(0))
    before = tokenizer.encode(CHATML.before).ids
    table = model.decoder.embed_tokens.weight
    with torch.inference_mode():
        x = fuse(fusion, image, model.embed(image[:, -1:], packed.ids), packed)[0]
        for index, question in enumerate(asked):
            prompt = tokenizer.encode(CHATML.behind.format(question=question.question)).ids
            answer = tokenizer.encode(question.answer + "<|im_end|>").ids[:-1]
            alone = fusion(image, table[torch.tensor(before + prompt)][None])[0]
            rows = x[packed.segment[0] == index]
            torch.testing.assert_close(rows[: len(prompt)], alone[-len(prompt) :], rtol=1e-4, atol=1e-4)
            assert torch.equal(rows[len(prompt) :], table[torch.tensor(answer)])
        torch.testing.assert_close(x[: len(before)], alone[1 : 1 + len(before)], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(x[len(before)], alone[0], rtol=1e-4, atol=1e-4)


def test_the_ends_of_prompts_are_held_to_the_answers_words(model: NanoVLM) -> None:
    """The last token of each prompt to the first word, the three before it to the others; of two images together."""
    tokenizer = build_tokenizer()
    asked = [[Question("number", "What number is written?", "407"), Question("colour", "Which colour?", "red")]]
    asked.append([Question("count", "How many circles are there?", "2")])
    packed = pack(asked, tokenizer, 1, CHATML)
    fused = torch.randn(*packed.ids.shape, 128, generator=torch.Generator().manual_seed(0))
    wanted = []
    with torch.inference_mode():
        for index, question in enumerate(question for questions in asked for question in questions):
            row, columns = int(index == 2), (packed.segment == index).nonzero()[:, 1]
            end = int(columns[0]) + len(tokenizer.encode(CHATML.behind.format(question=question.question)).ids) - 1
            for ahead, word in enumerate(tokenizer.encode(question.answer + "<|im_end|>").ids):
                held = end + ahead - 4 if ahead else end
                wanted.append(-model.words(fused[row, held]).log_softmax(-1)[word])
        assert len(wanted) == 4 + 2 + 2
        torch.testing.assert_close(ahead_loss(model, fused, packed), torch.stack(wanted).mean())


def test_our_loader_answers_as_training_saw_it(model: NanoVLM, tmp_path: Path) -> None:
    tokenizer, fusion = build_tokenizer(), model.fusion
    assert fusion is not None
    publish(tmp_path / "m", write_llava_mini, SPEC, model.state_dict(), tokenizer, "card")
    loaded = load(tmp_path / "m")
    assert loaded.fusion is not None
    for module in (loaded.vision, loaded.fusion, loaded.decoder):
        module.float()
    _, image = train_scene(SCENE_STREAM, 0, 2, 64)
    before, after = (
        tokenizer.encode(piece).ids for piece in (CHATML.before, CHATML.behind.format(question="What is it?"))
    )

    def logits(answer: str) -> tuple[Tensor, Tensor]:
        packed = pack([[Question("count", "What is it?", answer)]], tokenizer, 1, CHATML)
        shown = model.project(model.vision(pixels([image], SPEC)))
        x = fuse(fusion, shown, model.embed(shown[:, -1:], packed.ids), packed)
        found, _, _ = model(x, packed.positions, packed.mask, packed.labels >= 0)
        return found, shown

    with torch.inference_mode():
        seen = loaded.vision(pixels([image], loaded.spec.preprocess))
        torch.testing.assert_close(seen, logits("")[1], rtol=1e-4, atol=1e-4)
        (said,) = greedy(loaded, [before + after], len(before), seen)
        assert len(said) > 0
        assert int(logits("")[0].argmax(-1)) == said[0]


@pytest.mark.usefixtures("llava")
def test_its_training_moves_all_but_the_towers_and_ends_in_a_checkpoint(tmp_path: Path) -> None:
    trainer = Trainer(SETTINGS, tmp_path)
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    trainer.advance()
    trainer.advance()
    moved = {name.split(".")[0] for name, v in trainer.model.named_parameters() if not torch.equal(v, before[name])}
    assert moved == {"projector", "compressor", "fusion", "decoder"}
    train_nano(
        "nano-llava-mini", tmp_path / "out", images=6, test_items=6, workdir=tmp_path / "state", settings=SETTINGS
    )
    assert load(tmp_path / "out").spec.family == "llava_mini"
    assert "pre-fusion" in (tmp_path / "out" / "README.md").read_text()
