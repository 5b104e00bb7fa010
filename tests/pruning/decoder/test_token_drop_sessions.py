"""Sessions with decoders that drop image tokens: a conversation's answers depend on that conversation alone."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from refusals import refusal
from specs import TINY
from tiny import DECODER, TOKENS, tiny_model

import edgevlm
from edgevlm.context import Embeddings, Part, prefills, whole_turns, with_turn
from edgevlm.models import load, resolve
from edgevlm.passes import PassContext
from edgevlm.pipeline import compile_recipe
from edgevlm.pipeline.passes import parse_passes
from edgevlm.pruning.tokens import REDUCERS
from edgevlm.pruning.tokens.fastv import FastVOptions
from edgevlm.recipe import PassEntry, Recipe
from edgevlm.runtimes.base import EngineOptions, Float32, Segment
from edgevlm.runtimes.torch import TorchDecoder, TorchVision
from edgevlm.session import Session
from edgevlm.spec import (
    DropStage,
    FusionSpec,
    ModelSpec,
    PatchesSpec,
    QFormerSpec,
    ReducerSpec,
    RowsLayout,
    TokenDropSpec,
)
from edgevlm.tokenizer import Tokenizer
from edgevlm.zoo.evaluate import answers
from edgevlm.zoo.scenes import scenes
from edgevlm.zoo.tokenizer import build_tokenizer

DROP = TokenDropSpec("fastv", "attention", TOKENS, (DropStage(1, 4),))
RNG = np.random.default_rng(0)
CAT, DOG = (RNG.integers(0, 255, (64, 64, 3), np.uint8) for _ in range(2))


class Watched(TorchDecoder):
    """Remembers the lengths of what it appended."""

    lengths: list[int]

    def prefill(self, segments: list[Segment]) -> Float32:
        self.lengths.append(sum(map(len, segments)))
        return super().prefill(segments)

    @property
    def prompts(self) -> list[int]:
        return [length for length in self.lengths if length > 1]


def make(folder: Path) -> tuple[Session, Watched]:
    model = tiny_model(replace(DECODER, token_drop=DROP, max_position_embeddings=1024))
    path = folder / "tokenizer.json"
    if not path.exists():
        build_tokenizer().save(str(path))
    decoder = Watched(model, EngineOptions())
    decoder.lengths = []
    return Session(model.spec, Tokenizer(path), TorchVision(model), decoder), decoder


def ask(session: Any, *arguments: Any) -> tuple[int, ...]:
    """Tokens of an answer."""
    ids: tuple[int, ...] = session(*arguments, max_tokens=4, ignore_eos=True).token_ids
    return ids


def test_another_question_about_an_image_is_answered_as_in_a_fresh_session(tmp_path: Path) -> None:
    """The image's tokens were chosen by the first question; the second must not find them."""
    session, decoder = make(tmp_path)
    questions = ["What is it?", "How many are there, and where?", "What is it?", "What is he?", "What is it?"]
    said = [ask(session.generate, CAT, question) for question in questions]
    assert said == [ask(make(tmp_path)[0].generate, CAT, question) for question in questions]
    assert said[0] != said[1]
    assert min(decoder.prompts) > TOKENS


def test_conversations_do_not_see_each_other(tmp_path: Path) -> None:
    """Two chats about one image take turns: what the cache lost is prefilled turn by turn, as it was at first."""
    session, _ = make(tmp_path)
    chats = session.chat(), session.chat()
    turns = [("What is it?", [CAT]), ("And this?", [DOG]), ("Which is larger?", None), ("Both again?", [CAT, DOG])]
    other = [("How many?", [CAT]), ("Why?", None), ("Who?", None), ("Where?", [CAT])]
    said = [
        ask(chat.ask, *turn) for pair in zip(turns, other, strict=True) for chat, turn in zip(chats, pair, strict=True)
    ]
    for number, script in enumerate((turns, other)):
        alone = make(tmp_path)[0].chat()
        assert said[number::2] == [ask(alone.ask, *turn) for turn in script]


def test_a_further_turn_prefills_only_what_is_new(tmp_path: Path) -> None:
    session, decoder = make(tmp_path)
    chat = session.chat()
    for turn in ("What is it?", CAT), ("And then?", None), ("And this?", DOG):
        ask(chat.ask, *turn)
    assert len(decoder.prompts) == 3
    assert sum(decoder.lengths) == decoder.position


def test_questions_without_an_image_reuse_what_is_there(tmp_path: Path) -> None:
    session, decoder = make(tmp_path)
    assert ask(session.generate, None, "Who are you?") == ask(session.generate, None, "Who are you?")
    assert len(decoder.prompts) == 1


def test_images_are_cut_from_the_cache_with_their_turn() -> None:
    rows = np.zeros((3, 2), np.float32)
    cat, dog = Embeddings(b"c", 0, rows), Embeddings(b"d", 0, rows)
    first: list[Part] = with_turn([1, cat, 2, 3], 0)
    both = with_turn([*first, 4, 5, dog, 6, cat, 7], len(first))
    assert [whole_turns(both, keep) for keep in range(11)] == [0, 1, 1, 1, 4, 5, 6, 6, 6, 6, 10]
    assert [list(each) for each in prefills(both, 0)] == [both[:4], both[4:]]
    assert [list(each) for each in prefills(both, 6)] == [both[6:]]
    assert [list(each) for each in prefills([1, cat, 2], 0)] == [[1, cat, 2]]


@pytest.mark.parametrize(
    ("name", "method", "keep", "options"),
    [("nano-fastvlm", "fastv", 16, {"after": 1}), ("nano-llava", "dart", 36, {})],
)
def test_a_shipped_model_answers_as_in_torch(
    name: str, method: str, keep: int, options: dict[str, int], tmp_path: Path
) -> None:
    """Exported, verified, loaded: the pruned torch model's tokens for 64 questions, in which the drop is seen."""
    entry = PassEntry.model_validate({"name": "prune_tokens", "method": method, "keep": keep, "options": options})
    recipe = Recipe(model=f"zoo:{name}", precision="fp32", passes=(entry,))
    bundle = compile_recipe(recipe, tmp_path / "bundle", progress=lambda *_: None)
    assert all(result.passed for result in bundle.manifest.parity)
    assert {(r.stage, r.metric): r.value for r in bundle.manifest.parity}["decoder", "kept_tokens"] == 1
    original = load(resolve(recipe.model))
    (each,) = parse_passes(recipe)
    model = each.run(original, PassContext(None, original, lambda *_: None))
    assert model.spec.decoder == bundle.spec.decoder
    assert bundle.spec.decoder.token_drop is not None
    tokenizer = Tokenizer(original.tokenizer_files["tokenizer.json"])
    items = list(scenes("test", 64))
    said = []
    with edgevlm.load(bundle.path, vision_engine="onnxruntime") as session:
        said.append([ask(session.generate, item.image, item.question) for item in items])
        chat = session.chat()
        turns = [(items[0].question, items[0].image), (items[1].question, None), (items[9].question, items[9].image)]
        talked = [ask(chat.ask, *turn) for turn in turns]
    for reference in (model, original):
        with Session(reference.spec, tokenizer, TorchVision(reference), TorchDecoder(reference, EngineOptions())) as s:
            said.append([ask(s.generate, item.image, item.question) for item in items])
            if reference is model:
                chat = s.chat()
                assert talked == [ask(chat.ask, *turn) for turn in turns]
    assert said[0] == said[1] != said[2]


def test_scores_in_torch_are_those_of_the_model_that_drops_tokens() -> None:
    """Prompts of one length are answered together; where each chooses its own tokens, that must not mix them."""
    original, items = load(resolve("zoo:nano-fastvlm")), list(scenes("test", 48))
    for module in (original.vision, original.decoder):
        module.float()
    model = REDUCERS["fastv"].reduced(original, 4, FastVOptions(after=1))
    tokenizer = Tokenizer(original.tokenizer_files["tokenizer.json"])
    engines = TorchVision(model), TorchDecoder(model, EngineOptions())
    with Session(model.spec, tokenizer, *engines) as session:
        said = [session.generate(item.image, item.question, max_tokens=8).text for item in items]
    assert answers(model, items) == said != answers(original, items)


MAP = replace(TINY, prompt=replace(TINY.prompt, image_layout=RowsLayout(9)))
FREE = replace(TINY, preprocess=replace(TINY.preprocess, patches=PatchesSpec(8, 2, 2, 64, 4096)))
QUERIES = replace(TINY, vision=replace(TINY.vision, projector=QFormerSpec(32, 64, 2, 4, 32), image_tokens=32))
REDUCED = replace(TINY, vision=replace(TINY.vision, reducer=ReducerSpec("uniform", 16)))


@pytest.mark.parametrize("method", ["fastv", "pyramiddrop", "dart"])
@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (replace(TINY, fusion=FusionSpec(2, 1)), "its fusion leaves 1 token"),
        (QUERIES, "its Q-Former makes 32 tokens"),
        (FREE, "the number of their tokens is not fixed"),
        (MAP, "the number of an image's tokens is not fixed"),
        (REDUCED, "uniform has reduced its image tokens already"),
        (replace(TINY, decoder=replace(TINY.decoder, token_drop=DROP)), "fastv drops its image tokens already"),
    ],
)
def test_families_that_cannot_gain_are_refused_with_the_reason(spec: ModelSpec, method: str, reason: str) -> None:
    entry = PassEntry.model_validate({"name": "prune_tokens", "method": method, "keep": 4})
    (each,) = parse_passes(Recipe(model="a", passes=(entry,)))
    assert reason in (each.applies_to(spec) or "")


def test_pyramiddrop_halves_the_tokens_where_the_paper_does() -> None:
    """LLaVA-1.5-7B: 32 layers, 576 tokens, 72 in the end."""
    decoder = replace(TINY.decoder, num_hidden_layers=32)
    llava = replace(TINY, decoder=decoder, vision=replace(TINY.vision, image_tokens=576))
    entry = PassEntry.model_validate({"name": "prune_tokens", "method": "pyramiddrop", "keep": 72})
    (each,) = parse_passes(Recipe(model="a", passes=(entry,)))
    assert each.applies_to(llava) is None
    drop = each.planned(llava).decoder.token_drop
    assert drop is not None
    assert drop.stages == (DropStage(8, 288), DropStage(16, 144), DropStage(24, 72))


@pytest.mark.parametrize(
    ("flags", "what"),
    [
        (["--prune-tokens", "fastv:0"], "greater than or equal to 1"),
        (["--prune-tokens", "fastv:65"], "65 tokens cannot be kept of 64"),
        (["--prune-tokens", "fastv:16,after=4"], "it has 4 layers, so 'after' is 1 to 3, not 4"),
        (["--prune-tokens", "fastv:16,after=0"], "fastv option 'after'"),
        (["--prune-tokens", "dart:16,after=9"], "it has 4 layers"),
        (["--prune-tokens", "dart:1"], "dart keeps 2 tokens or more"),
        (["--prune-tokens", "dart:16,text_pivots=65"], "an image of 64 tokens cannot be compared with 65 pivots"),
        (["--prune-tokens", "pyramiddrop:16,stages=4"], "room for 3 stages at most"),
        (["--prune-tokens", "fastv:16", "--format", "gguf"], "llama.cpp runs all layers over the same tokens"),
    ],
)
def test_bad_input_is_refused_before_any_work(
    flags: list[str], what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bundle"
    assert what in refusal(capsys)("export", "zoo:nano-fastvlm", "-o", out, *flags)[0]
    assert list(tmp_path.iterdir()) == []
