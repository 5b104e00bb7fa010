"""Image tokens dropped inside the torch decoder: the formulas, the caches, and what must not change."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tiny import DECODER, TOKENS, tiny_model
from token_drop_oracle import Image, answer, pair

from edgevlm import reference
from edgevlm.errors import InputError
from edgevlm.models import token_drop
from edgevlm.models.decoder import rotary_for
from edgevlm.models.vlm import VlmModel
from edgevlm.runtimes.base import EngineOptions, Segment
from edgevlm.runtimes.torch import TorchDecoder
from edgevlm.spec import DropStage, ModelSpec, TokenDropSpec

N = 12
FASTV = TokenDropSpec("fastv", "attention", N, (DropStage(2, 5),))
PYRAMID = TokenDropSpec("pyramiddrop", "attention", N, (DropStage(1, 8), DropStage(2, 5), DropStage(3, 2)))
DART = TokenDropSpec("dart", "duplicate", N, (DropStage(2, 6),), image_pivots=2, text_pivots=3)
DROPS = {"fastv": FASTV, "pyramiddrop": PYRAMID, "dart": DART}
#: Two prompts with answers: text, image, less text than DART has pivots; then text, two images, text.
#: Lengths of what is no image.
TURNS = [[4, 0, 2], [3, 0, 2, 0, 6]]


def conversation(said: int) -> tuple[list[tuple[int, list[int]]], list[Image], int]:
    """Prompts as (length, starts of images in it), the images in the whole, and its length; an answer after each."""
    prompts, images, place = [], [], 0
    for turn in TURNS:
        begin, starts, tokens = place, [], []
        for length in turn:
            if length == 0:
                starts.append(place - begin)
                tokens.append(tuple(range(place, place + N)))
            place += length or N
        images += [Image(each, place - 1) for each in tokens]
        prompts.append((place - begin, starts))
        place += said
    return prompts, images, place


@pytest.mark.parametrize("method", DROPS)
@pytest.mark.parametrize("name", ["qwen3", "phi2"])
@torch.no_grad()
def test_prompts_and_answers_equal_the_formula_over_the_whole_sequence(name: str, method: str) -> None:
    """Selection, caches of different lengths and positions, over two turns with one and with two images."""
    transformers, decoder = pair(name, DROPS[method])
    prompts, images, length = conversation(said=3)
    x = torch.randn(length, 64)
    expected, kept = answer(transformers, DROPS[method], x, images)
    places, cache, found = kept[-1], None, {}
    begin = 0
    for size, starts in prompts:
        steps = [(begin, begin + size, starts)]
        steps += [(begin + size + said, begin + size + said + 1, []) for said in range(3)]
        for start, end, images_in_it in steps:
            positions = torch.arange(start, end)[None]
            logits, cache = decoder(x[None, start:end], positions, cache, image_starts=images_in_it)
            found[end - 1] = logits[0, -1]
        begin += size + 3
    for place, logits in found.items():
        torch.testing.assert_close(logits, expected[places.index(place)], atol=1e-3, rtol=1e-3)
    stages = DROPS[method].stages
    assert [len(each) for each in kept] == [length - 3 * (N - stage.keep) for stage in stages]
    lengths = [key.shape[2] for key, _ in cache or []]
    assert lengths == [length if not part else len(kept[part - 1]) for part in map(DROPS[method].part, range(4))]


def test_of_equal_scores_the_first_tokens_are_kept() -> None:
    """Zero queries attend to all alike; then the places decide, as they do in ONNX."""
    model = dropping(TokenDropSpec("fastv", "attention", TOKENS, (DropStage(1, 5),)))
    layer: Any = model.decoder.layers[0]
    layer.self_attn.q_proj.weight.zero_()
    layer.self_attn.q_proj.bias.zero_()
    assert kept(model, segments(model)) == [*range(7 + 5), *range(7 + TOKENS, 7 + TOKENS + 5)]


@pytest.mark.parametrize("method", DROPS)
def test_keeping_all_tokens_changes_nothing(method: str) -> None:
    whole = TorchDecoder(tiny_model(), EngineOptions())
    stages = tuple(DropStage(1, TOKENS) for _ in range(1))
    model = dropping(replace(DROPS[method], image_tokens=TOKENS, stages=stages))
    engine = TorchDecoder(model, EngineOptions())
    np.testing.assert_array_equal(engine.prefill(segments(model)), whole.prefill(segments(model)))
    np.testing.assert_array_equal(engine.decode(5), whole.decode(5))


@pytest.mark.parametrize("method", DROPS)
def test_a_prompt_without_images_is_computed_as_without_the_drop(method: str) -> None:
    ids = np.arange(9, dtype=np.int32)
    model = dropping(tiny_drop(method))
    expected = TorchDecoder(tiny_model(), EngineOptions()).prefill([ids])
    np.testing.assert_array_equal(TorchDecoder(model, EngineOptions()).prefill([ids]), expected)


def test_the_streaming_reference_equals_the_engine() -> None:
    model = dropping(tiny_drop("fastv"))
    engine, said = TorchDecoder(model, EngineOptions()), [5, 700]
    logits = [engine.prefill(segments(model)), *(engine.decode(token).copy() for token in said)]
    rows = [part if part.ndim == 2 else reference.token_embeddings(model, part.tolist()) for part in segments(model)]
    rows.append(reference.token_embeddings(model, said))
    (found,) = reference.last_logits(model, [rows], [3], [(7,)])
    np.testing.assert_allclose(found, np.stack(logits), atol=1e-4)


def test_the_cache_is_cut_in_front_of_an_image_or_behind_its_prompt() -> None:
    model = dropping(tiny_drop("fastv"))
    engine, fresh = TorchDecoder(model, EngineOptions()), TorchDecoder(model, EngineOptions())
    prompt, more = segments(model), np.array([4, 5, 6], np.int32)
    end = 7 + TOKENS + 5
    engine.prefill(prompt)
    engine.decode(9)
    engine.reset(end)
    fresh.prefill(prompt)
    np.testing.assert_allclose(engine.prefill([more]), fresh.prefill([more]), atol=1e-5)
    for keep in (8, 7 + TOKENS, end - 1):
        with pytest.raises(ValueError, match="part an image from its prompt"):
            engine.reset(keep)
    engine.reset(7)
    fresh.reset()
    np.testing.assert_allclose(engine.prefill(prompt[1:]), fresh.prefill(prompt), atol=1e-5)


def test_embeddings_that_are_no_whole_image_are_refused() -> None:
    model = dropping(tiny_drop("fastv"))
    with pytest.raises(InputError, match="3 embeddings in a row are no image of 16 tokens"):
        TorchDecoder(model, EngineOptions()).prefill([np.zeros((3, 64), np.float32)])


def test_each_pivot_takes_its_share_and_the_first_ones_the_rest() -> None:
    assert token_drop.shares(DART, 9) == [2, 2, 1, 1, 1]


def test_a_spec_without_a_drop_is_written_as_before_and_one_with_it_is_read_back() -> None:
    plain, drop = tiny_model().spec, dropping(tiny_drop("dart")).spec
    assert "token_drop" not in plain.to_dict()["decoder"]
    assert ModelSpec.from_dict(plain.to_dict()) == plain
    assert ModelSpec.from_dict(drop.to_dict()) == drop


def tiny_drop(method: str) -> TokenDropSpec:
    """A method for the tiny model, whose decoder has two layers."""
    return replace(DROPS[method], image_tokens=TOKENS, stages=(DropStage(1, 6),))


def dropping(drop: TokenDropSpec) -> VlmModel:
    return tiny_model(replace(DECODER, token_drop=drop))


def segments(model: VlmModel) -> list[Segment]:
    """Ids, an image, ids."""
    rng = np.random.default_rng(0)
    image = rng.normal(size=(TOKENS, model.spec.decoder.hidden_size)).astype(np.float32)
    return [rng.integers(0, 1000, 7).astype(np.int32), image, rng.integers(0, 1000, 5).astype(np.int32)]


def kept(model: VlmModel, prompt: list[Segment]) -> list[int]:
    """Places that go on behind the first layer."""
    decoder, drop = model.decoder, model.spec.decoder.token_drop
    assert drop is not None
    rows = [torch.from_numpy(p) if p.ndim == 2 else decoder.embed_tokens(torch.from_numpy(p).long()) for p in prompt]
    x = torch.cat(rows)[None]
    rotary = rotary_for(model.spec.decoder, torch.arange(x.shape[1])[None])
    layer: Any = decoder.layers[0]
    after, (keys, _) = layer(x, rotary, None, None)
    passage = token_drop.Passage(x, after, rotary, keys)
    where = token_drop.Prompt((len(prompt[0]),), x.shape[1] - 1, x.shape[1])
    return token_drop.kept_places(drop, 0, layer, decoder.norm, passage, where).tolist()
