"""LLaVA-Mini from checkpoint to answers: bundles of both formats give the specification's greedy tokens."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from llava_mini_oracle import Oracle, make_oracle, write_checkpoint
from PIL import Image

import edgevlm
from edgevlm import pipeline
from edgevlm.preprocess import preprocess
from edgevlm.prompt import Message
from edgevlm.recipe import Recipe, VerifyThresholds
from edgevlm.session import Session

QUESTION = "What! is on! the left?"
TOKENS = 6
#: (kind, compressor_size, resolution_ratio)
MODELS = {"one-token": ("llama", 1, 1), "qwen": ("qwen", 2, 1), "high-resolution": ("llama", 8, 2)}
BUNDLES = (("one-token", "onnx"), ("one-token", "gguf"), ("qwen", "onnx"), ("high-resolution", "gguf"))


def silent(_done: float, _total: float, _what: str) -> None:
    """A progress nobody watches."""


def pictures() -> list[Image.Image]:
    generator = np.random.default_rng(5)
    coarse = [generator.integers(0, 256, (6, 8, 3), dtype=np.uint8) for _ in range(3)]
    return [Image.fromarray(pixels).resize((96, 72)) for pixels in coarse]


def parts_of(session: Session, image: Image.Image) -> torch.Tensor:
    """The parts `[P, 3, R, R]` of an image, checked against transformers' processor in the loader's tests."""
    stacked = torch.from_numpy(preprocess(image, session.spec.preprocess))[0]
    size = stacked.shape[-1]
    return stacked.view(3, -1, size, size).transpose(0, 1)


def prompt_ids(session: Session, images: int, question: str = QUESTION) -> list[int]:
    return session.formatter.start([*session.formatter.system_messages(None), Message("user", question, images)])


class Made:
    """A checkpoint, the statement of its model, and a session of a bundle made of it."""

    def __init__(self, name: str, folder: Path) -> None:
        kind, size, ratio = MODELS[name]
        self.oracle = make_oracle(kind=kind, compressor_size=size, resolution_ratio=ratio, seed=12)
        self.checkpoint = write_checkpoint(self.oracle, folder / "checkpoint", kind=kind)


@pytest.fixture(scope="module")
def one_token(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made("one-token", tmp_path_factory.mktemp("one-token"))


@pytest.fixture(scope="module", params=BUNDLES, ids=["-".join(pair) for pair in BUNDLES])
def bundled(
    request: pytest.FixtureRequest, one_token: Made, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Oracle, Session]]:
    name, form = request.param
    made = one_token if name == "one-token" else Made(name, tmp_path_factory.mktemp(name))
    recipe = Recipe(model=str(made.checkpoint), format=form, precision="fp32")
    bundle = pipeline.compile_recipe(recipe, made.checkpoint.parent / form, progress=silent)
    values = {result.metric: result.value for result in bundle.manifest.parity}
    assert values["token_agreement"] == values["top1_agreement"] == 1
    assert min(values["vision_cosine"], values["fusion_cosine"]) > 0.99999
    graphs = {entry.role for entry in bundle.manifest.artifacts if entry.path.endswith((".onnx", ".gguf"))}
    # llama.cpp embeds the text itself.
    assert graphs == {"vision", "fusion", "decoder"} | ({"embed"} if form == "onnx" else set())
    with edgevlm.load(bundle.path, vision_engine="onnxruntime", threads=1) as loaded:
        yield made.oracle, loaded


def test_greedy_tokens_equal_the_specification(bundled: tuple[Oracle, Session]) -> None:
    """About images, portrait and landscape, and a question without one."""
    oracle, session = bundled
    answers = set()
    for image in (pictures()[0], pictures()[1].rotate(90, expand=True)):
        answer = session.generate(image, QUESTION, max_tokens=TOKENS, ignore_eos=True)
        ids = prompt_ids(session, 1)
        assert 0 in ids
        assert list(answer.token_ids) == oracle.greedy([parts_of(session, image)], ids, TOKENS)
        assert answer.stats.image_tokens == oracle.compressor_size**2
        answers.add(answer.token_ids)
    plain = session.generate(None, QUESTION, max_tokens=TOKENS, ignore_eos=True)
    assert list(plain.token_ids) == oracle.greedy([], prompt_ids(session, 0), TOKENS)
    assert len(answers | {plain.token_ids}) == 3, "the image decides nothing here"


def test_a_video_equals_the_specification(bundled: tuple[Oracle, Session]) -> None:
    oracle, session = bundled
    answer = session.generate(pictures(), QUESTION, max_tokens=TOKENS, ignore_eos=True, video=True)
    frames = [parts_of(session, picture) for picture in pictures()]
    assert list(answer.token_ids) == oracle.greedy(frames, prompt_ids(session, 1), TOKENS)
    assert answer.stats.image_tokens == 3 * oracle.compressor_size**2
    assert answer.stats.fusion_ms is not None


def test_a_second_turn_equals_the_specification(bundled: tuple[Oracle, Session]) -> None:
    oracle, session = bundled
    chat = session.chat()
    first = chat.ask(QUESTION, pictures()[0], max_tokens=3, ignore_eos=True)
    second = chat.ask("And on the right?", max_tokens=TOKENS, ignore_eos=True)
    turns = [Message("user", QUESTION, 1), Message("assistant", first.text), Message("user", "And on the right?")]
    messages = [*session.formatter.system_messages(None), *turns]
    ids = [*prompt_ids(session, 1), *first.token_ids, *session.formatter.follow_up(messages)]
    assert list(second.token_ids) == oracle.greedy([parts_of(session, pictures()[0])], ids, TOKENS)


def test_a_narrow_bundle_states_what_it_holds(one_token: Made) -> None:
    """Q4_0 beside an int4 fusion exports, passes what is asked of noise, and answers."""
    lenient = VerifyThresholds(fusion_cosine=0.5, logits_cosine=0.2, top1_agreement=0, token_agreement=0)
    recipe = Recipe(model=str(one_token.checkpoint), format="gguf", precision="int4", verify=lenient)
    bundle = pipeline.compile_recipe(recipe, one_token.checkpoint.parent / "int4", progress=silent)
    fusion = bundle.find("fusion", ".onnx_data")
    assert fusion is not None
    assert (fusion.path, fusion.precision) == ("onnx/fusion_q4.onnx_data", "int4")
    assert fusion.parameters == sum(value.numel() for value in one_token.oracle.prefusion.parameters())
    # Four bits and a scale for 32 weights; a tiny model's norms weigh more than a real one's.
    assert 5 <= fusion.bits_per_weight < 5.5
    with edgevlm.load(bundle.path, vision_engine="onnxruntime", threads=1) as session:
        assert len(session.generate(pictures()[0], QUESTION, max_tokens=2, ignore_eos=True).token_ids) == 2


def test_the_torch_reference_answers_like_the_specification(one_token: Made) -> None:
    """What the bench compares bundles with."""
    from edgevlm.bench.job import Job
    from edgevlm.bench.opened import open_subject

    subject: Any = open_subject(Job(kind="reference", path=str(one_token.checkpoint), threads=1))
    image = np.asarray(pictures()[2])
    reply = subject.answer(image, QUESTION, max_tokens=TOKENS, to_the_end=True, reuse=False)
    ids = prompt_ids(subject._session, 1)
    assert list(reply.token_ids) == one_token.oracle.greedy([parts_of(subject._session, pictures()[2])], ids, TOKENS)
    assert reply.fusion_ms > 0
