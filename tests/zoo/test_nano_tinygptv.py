"""The nano TinyGPT-V: its stages move what they should, and its four sources load as it was trained."""

from pathlib import Path

import pytest
import torch
from nano_specs import TINYGPTV as SPEC

from edgevlm.models import load
from edgevlm.prompt import IMAGE_PLACEHOLDER, Message, PromptFormatter
from edgevlm.tokenizer import Tokenizer
from edgevlm.zoo.batches import SCENE_STREAM, cell_targets, pixels, train_scene
from edgevlm.zoo.evaluate import greedy
from edgevlm.zoo.losses import cell_loss
from edgevlm.zoo.nano import NanoVLM
from edgevlm.zoo.publish import publish
from edgevlm.zoo.start_values import initialise
from edgevlm.zoo.tinygptv_layout import write_tinygptv
from edgevlm.zoo.tokenizer import build_tokenizer
from edgevlm.zoo.train import train_nano
from edgevlm.zoo.trainer import Settings, Trainer

SETTINGS = Settings(
    spec=SPEC,
    images={"vision": 4, "queries": 4, "answers": 4},
    batch={"vision": 2, "queries": 2, "answers": 2},
    peak_rate={"vision": 1e-3, "queries": 1e-3, "answers": 1e-3},
    pool=4,
    validation_scenes=4,
    validate_every=2,
)


@pytest.fixture(scope="module")
def model() -> NanoVLM:
    """Random weights; those that start as a constant too, so that none can be taken for another."""
    made = NanoVLM(SPEC).eval()
    initialise(made, 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in made.named_parameters():
            # The published encoder has no such bias: it changes no attention.
            if value.dim() == 1 and not name.endswith("attention.k_proj.bias"):
                value.add_(0.1 * torch.randn(value.shape, generator=generator))
    return made.half().float()


@pytest.fixture(scope="module")
def folder(model: NanoVLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("zoo") / "nano"
    publish(out, write_tinygptv, SPEC, model.state_dict(), build_tokenizer(), "card")
    return out


def test_our_loader_answers_as_training_saw_it(folder: Path, model: NanoVLM) -> None:
    loaded = load(folder)
    loaded.vision.float()
    loaded.decoder.float()
    _, image = train_scene(SCENE_STREAM, 0, 2, 64)
    tokenizer = build_tokenizer()
    pieces = (SPEC.prompt.before, SPEC.prompt.behind.format(question="What is it?"))
    before, after = (tokenizer.encode(piece).ids for piece in pieces)
    with torch.inference_mode():
        seen = loaded.vision(pixels([image], loaded.spec.preprocess))
        torch.testing.assert_close(seen, model.project(model.vision(pixels([image], SPEC))), rtol=1e-3, atol=1e-4)
        (said,) = greedy(loaded, [before + after], len(before), seen)
        ids = torch.tensor([[*before, *[-1] * 8, *after, *said]])
        length = ids.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
        where = torch.zeros(1, length, dtype=torch.bool)
        where[0, -len(said) - 1 : -1] = True
        logits, _, _ = model(model.embed(seen, ids), torch.arange(length)[None], causal, where)
    assert len(said) > 0
    assert logits.argmax(-1).tolist() == said


def test_the_prompt_trained_on_is_the_deployed_one(folder: Path) -> None:
    spec, tokenizer = load(folder).spec.prompt, build_tokenizer()
    path = folder / "phi-2" / "tokenizer.json"
    ids = PromptFormatter(spec, Tokenizer(path)).start([Message("user", "What is it?", images=1)])
    split = ids.index(IMAGE_PLACEHOLDER)
    assert ids[:split] == tokenizer.encode(SPEC.prompt.before).ids
    assert ids[split + 1 :] == tokenizer.encode(SPEC.prompt.behind.format(question="What is it?")).ids
    assert tokenizer.token_to_id(SPEC.prompt.end) in spec.stop_token_ids


def test_queries_learn_what_lies_in_their_regions() -> None:
    """Sixty steps on three scenes from random weights: the loss falls below half."""
    model = NanoVLM(SPEC)
    initialise(model, 0)
    made = [train_scene(SCENE_STREAM, 0, index, 64) for index in range(3)]
    images, targets = pixels([image for _, image in made], SPEC), cell_targets([s for s, _ in made], *SPEC.regions)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses = []
    for _ in range(60):
        loss = cell_loss(model.read_regions(model.project(model.vision(images))), targets)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] / 2


def test_each_stage_moves_its_own_parts_only(tmp_path: Path) -> None:
    trainer = Trainer(SETTINGS, tmp_path)
    moved = {}
    for stage in SETTINGS.stages:
        if stage != "vision":
            trainer.begin(stage)
        before = {name: value.clone() for name, value in trainer.model.named_parameters()}
        trainer.advance()
        moved[stage] = {
            name.split(".")[0] for name, v in trainer.model.named_parameters() if not torch.equal(v, before[name])
        }
    assert moved["vision"] == {"vision", "heads", "features_norm"}
    assert moved["queries"] == {"projector", "region_heads"}
    assert moved["answers"] == {"projector", "decoder", "place", "seen_place"}


def test_training_ends_in_a_checkpoint_with_its_card(tmp_path: Path) -> None:
    train_nano("nano-tinygpt-v", tmp_path / "out", images=12, test_items=6, workdir=tmp_path / "s", settings=SETTINGS)
    assert load(tmp_path / "out").spec.family == "tinygptv"
    assert "Q-Former" in (tmp_path / "out" / "README.md").read_text()
