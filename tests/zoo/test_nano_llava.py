"""The CLIP-shaped nano model: both towers train, and what is published is LLaVA-1.5's and CLIP's to transformers."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from nano_specs import LLAVA as SPEC
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    AutoProcessor,
    CLIPConfig,
    CLIPModel,
    LlavaForConditionalGeneration,
)

from edgevlm.models import load
from edgevlm.zoo.batches import SCENE_STREAM, describe_scene, pixels, train_scene
from edgevlm.zoo.clip import caption, contrastive_loss, encode_captions, retrieval
from edgevlm.zoo.evaluate import greedy
from edgevlm.zoo.llava_layout import write_llava
from edgevlm.zoo.nano import CHATML, NanoVLM
from edgevlm.zoo.publish import publish
from edgevlm.zoo.scenes import scenes
from edgevlm.zoo.start_values import initialise
from edgevlm.zoo.starts import start_decoder
from edgevlm.zoo.tokenizer import build_tokenizer
from edgevlm.zoo.train import run, train_nano
from edgevlm.zoo.trainer import Settings, Trainer

SETTINGS = Settings(
    spec=SPEC,
    images={"vision": 8, "align": 4, "answers": 8},
    batch={"vision": 2, "align": 2, "answers": 2},
    peak_rate={"vision": 1e-3, "align": 1e-3, "answers": 1e-3},
    pool=4,
    validation_scenes=4,
    validate_every=4,
    clutter=4,
)


@pytest.fixture(scope="module")
def model() -> NanoVLM:
    made = NanoVLM(SPEC).eval()
    initialise(made, 0)
    return made.half().float()


@pytest.fixture(scope="module")
def folder(model: NanoVLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("zoo") / "nano"
    publish(out, write_llava, SPEC, model.state_dict(), build_tokenizer(), "card")
    return out


def test_a_resumed_run_ends_exactly_where_an_uninterrupted_one_does(tmp_path: Path) -> None:
    whole = Trainer(SETTINGS, tmp_path / "whole")
    run(whole, lambda _: None)
    stopped = Trainer(SETTINGS, tmp_path / "parts")
    stopped.advance()
    stopped.save(tmp_path / "state.pt")
    resumed = Trainer(SETTINGS, tmp_path / "parts")
    resumed.load(tmp_path / "state.pt")
    run(resumed, lambda _: None)
    for name, value in whole.average.items():
        assert torch.equal(value, resumed.average[name]), name


def test_both_towers_learn_first_and_rest_afterwards(tmp_path: Path) -> None:
    trainer = Trainer(SETTINGS, tmp_path)
    moved = {}
    for stage in SETTINGS.stages:
        if stage != "vision":
            trainer.begin(stage)
        before = {name: value.clone() for name, value in trainer.model.named_parameters()}
        trainer.advance()
        moved[stage] = {name for name, v in trainer.model.named_parameters() if not torch.equal(v, before[name])}
    assert {"vision.vit.class_token", "vision.projection.weight", "text.logit_scale"} <= moved["vision"]
    assert {"vision.vit.patch.weight", "text.embed_tokens.weight"} <= moved["vision"]
    assert {name.split(".")[0] for name in moved["align"]} == {"projector", "place", "seen_place"}
    assert {name.split(".")[0] for name in moved["answers"]} == {"projector", "decoder", "place", "seen_place"}


def test_the_contrastive_loss_teaches_which_caption_belongs_to_which_image() -> None:
    """Sixty steps on four pairs from random towers: every image finds its caption."""
    torch.manual_seed(0)
    both, tokenizer = NanoVLM(SPEC), build_tokenizer()
    initialise(both, 0)
    made = [train_scene(SCENE_STREAM, 0, index, 64) for index in range(4)]
    images = pixels([image for _, image in made], SPEC)
    rng = np.random.default_rng(0)
    assert both.text is not None
    ids, ends = encode_captions([caption(scene, rng) for scene, _ in made], tokenizer, both.text.spec)
    optimizer = torch.optim.AdamW(both.parameters(), lr=1e-3)
    for _ in range(60):
        _, seen = both.vision.both(images)  # type: ignore[operator]
        said = both.text(ids, ends)
        loss = contrastive_loss(seen, said, both.text.logit_scale)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert retrieval(seen, said) == 1.0
    assert retrieval(seen, said.roll(1, dims=0)) == 0.0


def test_captions_name_all_that_a_scene_holds() -> None:
    scene, rng = describe_scene(SCENE_STREAM, 0, 1, 192)
    named = sorted(caption(scene, rng).split(", "))
    wanted = [f"{item.colour} {item.shape}" for item in scene.objects] + [f"number {p.text}" for p in scene.plates]
    assert named == sorted(wanted)
    assert len(named) > 1


def test_clutter_changes_the_background_and_nothing_else() -> None:
    plain, cluttered = (list(scenes("test", 24, size=192, clutter=count)) for count in (0, 12))
    assert [(a.question, a.answer) for a in plain] == [(b.question, b.answer) for b in cluttered]
    assert not any(np.array_equal(a.image, b.image) for a, b in zip(plain, cluttered, strict=True))
    scene, _ = describe_scene(SCENE_STREAM, 0, 1, 192)
    assert scene.clutter == 0
    some = [describe_scene(SCENE_STREAM, 0, index, 192, clutter=8)[0].clutter for index in range(20)]
    assert 0 in some
    assert 1 <= max(some) <= 8


def test_transformers_loads_the_published_folder_and_computes_the_same(folder: Path, model: NanoVLM) -> None:
    """Logits within 1e-4 of the training module's, no key missing or left over, pixels from its own processor."""
    oracle, report = LlavaForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    processor = AutoProcessor.from_pretrained(folder, use_fast=False)
    _, image = train_scene(SCENE_STREAM, 0, 0, 64)
    content = [{"type": "image"}, {"type": "text", "text": "What shape is it?"}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(images=Image.fromarray(image), text=prompt, return_tensors="pt")
    torch.testing.assert_close(inputs["pixel_values"], pixels([image], SPEC), rtol=1e-5, atol=1e-5)
    tokenizer = build_tokenizer()
    before, after = (
        tokenizer.encode(piece).ids for piece in (CHATML.before, CHATML.behind.format(question="What shape is it?"))
    )
    ids = torch.tensor([[*before, *[-1] * 16, *after]])
    assert torch.equal(ids.where(ids >= 0, oracle.config.image_token_id), inputs["input_ids"])
    length = ids.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
    with torch.inference_mode():
        projected = model.projector(model.vision(pixels([image], SPEC)))
        everywhere = torch.ones(1, length, dtype=torch.bool)
        logits, _, _ = model(model.embed(projected, ids), torch.arange(length)[None], causal, everywhere)
        wanted = oracle(**inputs).logits[0]
    torch.testing.assert_close(logits, wanted, rtol=1e-4, atol=1e-4)


def test_transformers_clip_gives_the_same_similarities(folder: Path, model: NanoVLM) -> None:
    """`text_tower` and the vision tower of `model.safetensors` are the whole of a CLIPModel."""
    clip = CLIPModel(CLIPConfig(**json.loads((folder / "text_tower.json").read_text()))).eval().float()
    tensors = load_file(folder / "text_tower.safetensors")
    tensors |= {
        name.replace("vision_tower.", "vision_model."): value
        for name, value in load_file(folder / "model.safetensors").items()
        if name.startswith("vision_tower.")
    }
    clip.load_state_dict(tensors)
    made = [train_scene(SCENE_STREAM, 0, index, 64) for index in range(3)]
    images = pixels([image for _, image in made], SPEC)
    rng = np.random.default_rng(0)
    assert model.text is not None
    ids, ends = encode_captions([caption(s, rng) for s, _ in made], build_tokenizer(), model.text.spec)
    with torch.inference_mode():
        wanted = clip(input_ids=ids, pixel_values=images).logits_per_image
        _, seen = model.vision.both(images)  # type: ignore[operator]
        found = model.text.logit_scale.exp() * seen @ model.text(ids, ends).T
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_our_loader_answers_as_training_saw_it(folder: Path, model: NanoVLM) -> None:
    loaded = load(folder)
    assert loaded.spec.vision.image_tokens == 16
    loaded.vision.float()
    loaded.decoder.float()
    _, image = train_scene(SCENE_STREAM, 0, 2, 64)
    tokenizer = build_tokenizer()
    before, after = (
        tokenizer.encode(piece).ids for piece in (CHATML.before, CHATML.behind.format(question="What is it?"))
    )
    with torch.inference_mode():
        seen = loaded.vision(pixels([image], loaded.spec.preprocess))
        torch.testing.assert_close(seen, model.projector(model.vision(pixels([image], SPEC))), rtol=1e-4, atol=1e-4)
        (said,) = greedy(loaded, [before + after], len(before), seen)
        ids = torch.tensor([[*before, *[-1] * 16, *after, *said]])
        length = ids.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
        where = torch.zeros(1, length, dtype=torch.bool)
        where[0, -len(said) - 1 : -1] = True
        logits, _, _ = model(model.embed(seen, ids), torch.arange(length)[None], causal, where)
    assert len(said) > 0
    assert logits.argmax(-1).tolist() == said


def test_the_decoder_can_start_from_a_shipped_one() -> None:
    """All weights but the biases that a Llama does not have."""
    shipped = load(Path("edgevlm/zoo/models/nano-fastvlm").resolve())
    spec = replace(shipped.spec.decoder, architecture="llama", qkv_bias=False)
    started = NanoVLM(replace(SPEC, decoder=spec))
    start_decoder(started, "nano-fastvlm")
    weights = shipped.decoder.state_dict()
    for name, value in started.decoder.state_dict().items():
        assert torch.equal(value, weights[name].float()), name


def test_training_ends_in_a_checkpoint_whose_card_names_both_stages(tmp_path: Path) -> None:
    train_nano("nano-llava", tmp_path / "out", images=16, test_items=12, workdir=tmp_path / "state", settings=SETTINGS)
    assert load(tmp_path / "out").spec.family == "llava"
    card = (tmp_path / "out" / "README.md").read_text()
    assert "of 64 test images" in card.lower()
    assert "is **not met**" in card
