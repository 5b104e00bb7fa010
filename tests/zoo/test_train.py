"""Training of the zoo model: batches that say what they should, losses that fall, runs that can be stopped."""

from pathlib import Path

import numpy as np
import pytest
import torch

from edgevlm.errors import InputError
from edgevlm.models import load
from edgevlm.spec import DecoderSpec, FastViTHDSpec
from edgevlm.zoo.batches import (
    DENSE_STREAM,
    IGNORE,
    SCENE_STREAM,
    VALIDATION_STREAM,
    cell_targets,
    pack,
    pixels,
    pointers,
    questions_for,
    stream_seed,
    train_scene,
    word_targets,
)
from edgevlm.zoo.drawing import COLOURS, SHAPES
from edgevlm.zoo.evaluate import evaluate, greedy, grey_noise, table
from edgevlm.zoo.layout import write_fastvlm
from edgevlm.zoo.losses import exact_matches
from edgevlm.zoo.nano import CHATML, NanoSpec, NanoVLM
from edgevlm.zoo.publish import publish
from edgevlm.zoo.scenes import Item, Question
from edgevlm.zoo.start_values import initialise
from edgevlm.zoo.tokenizer import build_tokenizer
from edgevlm.zoo.train import Progress, run, train_nano
from edgevlm.zoo.trainer import Settings, Trainer

SPEC = NanoSpec(
    encoder=FastViTHDSpec(depths=(1, 1, 1, 1, 1), dims=(8, 8, 16, 32, 32), squeeze_channels=8),
    decoder=DecoderSpec(
        architecture="qwen2",
        vocab_size=1024,
        hidden_size=128,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=64,
        rotary_dim=64,
        rope_theta=1e6,
        norm_eps=1e-6,
        max_position_embeddings=2048,
        qkv_bias=True,
    ),
    image_size=256,
)
SETTINGS = Settings(
    images={"vision": 8, "answers": 8},
    batch={"vision": 2, "answers": 2},
    pool=4,
    validation_scenes=4,
    validate_every=4,
    spec=SPEC,
)


def test_a_resumed_run_ends_exactly_where_an_uninterrupted_one_does(tmp_path: Path) -> None:
    reports: list[Progress] = []
    whole = Trainer(SETTINGS, tmp_path / "whole")
    run(whole, reports.append)
    stopped = Trainer(SETTINGS, tmp_path / "parts")
    for _ in range(2):
        stopped.advance()
    stopped.save(tmp_path / "state.pt")
    resumed = Trainer(SETTINGS, tmp_path / "parts")
    resumed.load(tmp_path / "state.pt")
    run(resumed, reports.append, until="vision")
    resumed.begin("answers")
    resumed.advance()
    resumed.save(tmp_path / "state.pt")
    resumed = Trainer(SETTINGS, tmp_path / "parts")
    resumed.load(tmp_path / "state.pt")
    run(resumed, reports.append)
    for name, value in whole.average.items():
        assert torch.equal(value, resumed.average[name]), name
    assert [p.stage for p in reports[:2]] == list(SETTINGS.stages)
    assert all(p.scores for p in reports)


def test_each_stage_moves_its_own_parts_only(tmp_path: Path) -> None:
    trainer = Trainer(SETTINGS, tmp_path)
    moved = {}
    for stage in SETTINGS.stages:
        if stage != "vision":
            trainer.begin(stage)
        before = {name: value.clone() for name, value in trainer.model.named_parameters()}
        trainer.advance()
        changed = {
            name.split(".")[0] for name, v in trainer.model.named_parameters() if not torch.equal(v, before[name])
        }
        moved[stage] = changed
    assert moved["vision"] == {"vision", "heads"}
    assert moved["answers"] == {"projector", "decoder", "place", "seen_place"}


def test_a_state_of_another_seed_is_refused(tmp_path: Path) -> None:
    Trainer(SETTINGS, tmp_path).save(tmp_path / "state.pt")
    other = Trainer(Settings(seed=1, spec=SPEC), tmp_path)
    with pytest.raises(InputError, match="started with seed 0"):
        other.load(tmp_path / "state.pt")
    with pytest.raises(InputError, match="no training to resume"):
        train_nano("nano-fastvlm", tmp_path / "out", resume=True, workdir=tmp_path / "nothing")


def test_the_decoder_learns_an_answer(tmp_path: Path) -> None:
    """Forty steps on one question must cut its loss by half and make greedy decoding say the answer."""
    trainer = Trainer(SETTINGS, tmp_path)
    model, tokenizer = trainer.model, trainer.tokenizer
    packed = pack([[Question("count", "How many shapes are there?", "3")]], tokenizer, 4, CHATML)
    image = torch.randn(1, 4, 128, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW(model.decoder.parameters(), lr=3e-3)
    labels = packed.labels[packed.labels != IGNORE]
    losses = []
    for _ in range(40):
        logits, _, _ = model(model.embed(image, packed.ids), packed.positions, packed.mask, packed.labels != IGNORE)
        loss = torch.nn.functional.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] / 2
    assert exact_matches(logits, packed)["count"] == (1, 1)


def test_packed_questions_do_not_see_each_other() -> None:
    """The logits of each question equal those of the same question asked alone."""
    torch.manual_seed(0)
    model, tokenizer = NanoVLM(SPEC).eval(), build_tokenizer()
    initialise(model, 0)
    scene, _ = train_scene(SCENE_STREAM, 0, 3, 256)
    asked = questions_for(scene, np.random.default_rng(0))
    image = torch.randn(1, 16, 128)

    def logits(questions: list[Question]) -> torch.Tensor:
        packed = pack([questions], tokenizer, 16, CHATML)
        result: tuple[torch.Tensor, ...] = model(
            model.embed(image, packed.ids), packed.positions, packed.mask, packed.labels != IGNORE
        )
        return result[0]

    with torch.inference_mode():
        together = logits(asked)
        alone = torch.cat([logits([question]) for question in asked])
    assert len(asked) > 3
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_the_published_folder_answers_as_training_saw_it(tmp_path: Path) -> None:
    """BatchNorm folded, half precision, KV cache and greedy steps: the tokens that one full pass of training gives."""
    tokenizer = build_tokenizer()
    model = NanoVLM(SPEC).eval()
    initialise(model, 0)
    publish(tmp_path / "m", write_fastvlm, SPEC, model.state_dict(), tokenizer, "card")
    loaded = load(tmp_path / "m")
    loaded.vision.float()
    loaded.decoder.float()
    made = [train_scene(SCENE_STREAM, 0, index, 256) for index in range(3)]
    images = pixels([image for _, image in made], SPEC)
    before, after = (
        tokenizer.encode(piece).ids for piece in (CHATML.before, CHATML.behind.format(question="What is it?"))
    )
    model.half().float()
    with torch.inference_mode():
        produced = greedy(loaded, [before + after] * 3, len(before), loaded.vision(images))
        projected = model.projector(model.vision(images))
        for row, said in enumerate(produced):
            ids = torch.tensor([[*before, *[-1] * 16, *after, *said]])
            length = ids.shape[1]
            where = torch.zeros(1, length, dtype=torch.bool)
            where[0, -len(said) - 1 : -1] = True
            causal = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
            logits, _, _ = model(model.embed(projected[row : row + 1], ids), torch.arange(length)[None], causal, where)
            assert len(said) > 0
            assert logits.argmax(-1).tolist() == said


def test_evaluation_needs_the_image_and_reports_every_type(tmp_path: Path) -> None:
    model = NanoVLM(SPEC)
    initialise(model, 0)
    publish(tmp_path / "m", write_fastvlm, SPEC, model.state_dict(), build_tokenizer(), "card")
    scores = evaluate(load(tmp_path / "m"), "test", 24)
    assert [s.type for s in scores] == ["colour", "shape", "count", "relation", "existence", "number", "all"]
    assert sum(s.items for s in scores[:-1]) == scores[-1].items == 24
    assert len(table(scores).splitlines()) == 9
    noisy = grey_noise([Item("a", "i", np.zeros((64, 64, 3), np.uint8), "count", "?", "1")])[0].image
    assert np.array_equal(noisy[..., 0], noisy[..., 1])
    assert noisy.std() > 50


def test_cell_targets_and_words_name_what_lies_in_a_cell() -> None:
    tokenizer = build_tokenizer()
    scene, _ = train_scene(SCENE_STREAM, 0, 0, 512)
    targets = cell_targets([scene], 8, 8)
    digits = sum(len(plate.text) for plate in scene.plates)
    assert int((targets.kind == 1).sum()) == len(scene.objects)
    assert int((targets.kind == 2).sum()) == digits
    weights, cells = word_targets(targets, tokenizer)
    torch.testing.assert_close(weights.sum(-1), torch.ones(len(cells)))
    item = scene.objects[0]
    index = int(item.y // 64) * 8 + int(item.x // 64)
    row = cells.tolist().index(index)
    named = {tokenizer.decode([i]).strip() for i in weights[row].nonzero().flatten().tolist()}
    assert named == {item.colour, item.shape}


def test_noun_phrases_point_at_the_cell_of_what_they_name() -> None:
    tokenizer = build_tokenizer()
    scene, _ = train_scene(SCENE_STREAM, 0, 5, 512)
    asked = [q for q in questions_for(scene, np.random.default_rng(1)) if q.type in ("relation", "colour", "shape")]
    packed = pack([asked], tokenizer, 64, CHATML)
    start = packed.ids[0].tolist().index(-1)
    found = pointers(packed, [scene], tokenizer, 8, 8)
    nouns = found.at[:, 0] == 0
    assert int(nouns.sum()) == sum(2 if question.type == "relation" else 1 for question in asked) > 2
    for (_, _, column, target), (x, y) in zip(found.at[nouns].tolist(), found.place[nouns].tolist(), strict=True):
        phrase = tokenizer.decode(packed.ids[0, column - 1 : column + 1].tolist()).split()
        (item,) = [o for o in scene.objects if start + int(o.y // 64) * 8 + int(o.x // 64) == target]
        assert set(phrase) - {"the", "object"} <= {item.colour, item.shape}
        assert (x, y) == pytest.approx((item.x / 512, item.y / 512))
    for slot, _, column, target in found.at[~nouns].tolist():
        question = packed.questions[int(packed.segment[0, column])]
        assert int(packed.labels[0, column]) == tokenizer.encode(question.answer).ids[0]
        words = [word for word in question.question.rstrip("?").split() if word in (*SHAPES, "object")]
        assert tokenizer.decode([int(packed.ids[0, target])]).strip() == words[0 if slot == 1 else -1]


def test_a_phrase_that_names_nothing_points_at_the_first_token() -> None:
    tokenizer = build_tokenizer()
    scene, _ = train_scene(SCENE_STREAM, 0, 5, 512)
    present = {(o.colour, o.shape) for o in scene.objects}
    colour, shape = next((c, s) for c in COLOURS for s in SHAPES if (c, s) not in present)
    packed = pack([[Question("existence", f"Is there a {colour} {shape}?", "no")]], tokenizer, 64, CHATML)
    found = pointers(packed, [scene], tokenizer, 8, 8)
    assert found.at[found.at[:, 0] == 0, 3].tolist() == [0]
    assert found.place.isnan().all()


def test_streams_of_training_never_meet() -> None:
    seeds = [
        stream_seed(stream, seed) for stream in (DENSE_STREAM, SCENE_STREAM, VALIDATION_STREAM) for seed in range(3000)
    ]
    assert len(set(seeds)) == len(seeds)


def test_training_ends_in_a_checkpoint_with_a_truthful_card(tmp_path: Path) -> None:
    lines: list[str] = []
    train_nano(
        "nano-fastvlm",
        tmp_path / "out",
        images=16,
        test_items=12,
        workdir=tmp_path / "state",
        settings=SETTINGS,
        report=lambda _done, _total, text: lines.append(text),
    )
    model = load(tmp_path / "out")
    assert model.spec.vision.image_tokens == 16
    assert model.spec.licence == "apache-2.0"
    card = (tmp_path / "out" / "README.md").read_text()
    assert "is **not met**" in card
    assert "| all | 12 |" in card
    assert [line.split()[0] for line in lines] == list(SETTINGS.stages)
    assert "images/s" in lines[0]
