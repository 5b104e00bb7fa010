"""The exported decoder drops the same image tokens as torch, in one graph, with caches that stay where they are."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from decoders import LLAMA, TINYGPTV
from onnx_models import write_decoder
from tiny import DECODER, TOKENS, tiny_bundle, tiny_model

from edgevlm.bundle import Bundle
from edgevlm.errors import BundleError, InputError
from edgevlm.models import decoder as decoders
from edgevlm.models import token_drop
from edgevlm.models.decoder import Decoder
from edgevlm.models.vlm import VlmModel
from edgevlm.pruning.tokens import REDUCERS
from edgevlm.runtimes.base import EngineOptions, Segment
from edgevlm.runtimes.onnxruntime import OnnxRuntimeDecoder
from edgevlm.runtimes.torch import TorchDecoder
from edgevlm.spec import DecoderSpec, DropStage, TokenDropSpec

OPTIONS = EngineOptions(threads=1)
FASTV = TokenDropSpec("fastv", "attention", TOKENS, (DropStage(2, 5),))
DROPS = {
    "fastv": FASTV,
    "pyramiddrop": TokenDropSpec("pyramiddrop", "attention", TOKENS, tuple(map(DropStage, (1, 2, 3), (11, 7, 3)))),
    "dart": TokenDropSpec("dart", "duplicate", TOKENS, (DropStage(2, 9),), image_pivots=3, text_pivots=4),
}
#: Queries, keys and values in one product, and apart with norms and partly rotated heads.
KINDS = {
    "qwen2": DECODER,
    "llama": replace(LLAMA, vocab_size=1024, max_position_embeddings=256),
    "tinygptv": replace(TINYGPTV, vocab_size=1024, max_position_embeddings=256),
}
Made = Callable[[str, str], tuple[VlmModel, Bundle]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    @cache
    def make(kind: str, method: str) -> tuple[VlmModel, Bundle]:
        model = tiny_model(replace(KINDS[kind], num_hidden_layers=4, token_drop=DROPS[method]))
        if kind == "tinygptv":  # random biases behind the last layer would drown everything before them
            decoder: Any = model.decoder
            decoder.norm.bias.zero_()
            decoder.lm_head.bias.zero_()
        return model, tiny_bundle(model, tmp_path_factory.mktemp("drop") / "bundle")

    return make


def test_every_method_inside_the_decoder_is_among_them() -> None:
    assert set(DROPS) == {name for name, cls in REDUCERS.items() if cls.inside_decoder}


def engine(bundle: Bundle) -> OnnxRuntimeDecoder:
    return OnnxRuntimeDecoder(
        bundle.artifact("decoder", ".onnx"), bundle.artifact("embed", ".onnx"), bundle.spec, OPTIONS
    )


def prompt(seed: int, hidden: int = 64) -> list[Segment]:
    """Text around one, two or three images, of lengths that differ; sometimes an image comes first or another last."""
    rng = np.random.default_rng(seed)
    found: list[Segment] = []
    for _ in range(1 + seed % 3):
        if length := int(rng.integers(0, 6)):
            found.append(rng.integers(0, 1000, length).astype(np.int32))
        found.append(rng.normal(size=(TOKENS, hidden)).astype(np.float32))
    if seed % 7:
        found.append(rng.integers(0, 1000, int(rng.integers(1, 12))).astype(np.int32))
    return found


def greedy(decoder: OnnxRuntimeDecoder | TorchDecoder, asked: list[Segment], count: int) -> list[int]:
    decoder.reset()
    tokens = [int(decoder.prefill(asked).argmax())]
    while len(tokens) < count:
        tokens.append(int(decoder.decode(tokens[-1]).argmax()))
    return tokens


@pytest.mark.parametrize(
    ("kind", "method"),
    [*(("qwen2", method) for method in DROPS), ("llama", "fastv"), ("tinygptv", "fastv"), ("tinygptv", "dart")],
)
def test_64_prompts_keep_the_same_tokens_and_get_the_same_answers(
    kind: str, method: str, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, bundle = made(kind, method)
    ours, theirs, graph = engine(bundle), TorchDecoder(model, OPTIONS), Graph(bundle)
    chosen: list[list[int]] = []

    def watch(*arguments: object) -> tuple[torch.Tensor, token_drop.Prompt]:
        drop, stage, _, _, passage, where = arguments
        kept = token_drop.kept_places(*arguments)  # type: ignore[arg-type]
        chosen.append(kept.tolist())
        return passage.after[:, kept], where.behind(drop, stage)  # type: ignore[attr-defined]

    answers = set()
    for seed in range(64):
        chosen.clear()
        with monkeypatch.context() as patch:
            patch.setattr(decoders, "going_on", watch)
            theirs.reset()
            theirs.prefill(prompt(seed))
        assert graph.kept(model.decoder, prompt(seed)) == chosen
        expected = greedy(theirs, prompt(seed), 4)
        assert greedy(ours, prompt(seed), 4) == expected
        answers.add(tuple(expected))
    assert len(answers) > 10, "prompts that are all answered alike show nothing"


class Graph:
    """The exported graph with caches that grow, as a host without buffers would run it."""

    def __init__(self, bundle: Bundle) -> None:
        self.session = onnxruntime.InferenceSession(str(bundle.artifact("decoder", ".onnx")))
        self.spec = bundle.spec.decoder

    def kept(self, decoder: Decoder, asked: list[Segment]) -> list[list[int]]:
        """Places that go on behind each stage."""
        drop = self.spec.token_drop
        assert drop is not None
        rows = [p if p.ndim == 2 else decoder.embed_tokens(torch.from_numpy(p).long()).numpy() for p in asked]
        lengths = np.cumsum([0, *map(len, rows)])
        starts = np.array([at for at, part in zip(lengths[:-1], asked, strict=True) if part.ndim == 2], np.int64)
        feed = {"inputs_embeds": np.concatenate(rows)[None], "num_logits_to_keep": np.array(1), "image_starts": starts}
        for part, stage in enumerate([DropStage(0, TOKENS), *drop.stages]):
            total = int(lengths[-1]) - len(starts) * (TOKENS - stage.keep)
            feed[f"attention_mask.{part}" if part else "attention_mask"] = np.ones((1, total), np.int64)
        empty = np.zeros((1, self.spec.num_key_value_heads, 0, self.spec.head_dim), np.float32)
        for index in range(self.spec.num_hidden_layers):
            feed |= {f"past_key_values.{index}.{part}": empty for part in ("key", "value")}
        names = [f"kept_positions.{number + 1}" for number in range(len(drop.stages))]
        return [found.tolist() for found in self.session.run(names, feed)]


@pytest.mark.parametrize("method", DROPS)
def test_turns_follow_each_other_in_the_buffers(method: str, made: Made) -> None:
    """Text, an image and text; an answer; text alone; an image again; and back to the middle."""
    model, bundle = made("qwen2", method)
    ours, theirs = engine(bundle), TorchDecoder(model, OPTIONS)
    for buffer in ours._cache.values():
        buffer.fill(1e4)
    first, second = prompt(1), prompt(2)
    text = np.array([3, 4, 5], np.int32)

    def both(step: Callable[[OnnxRuntimeDecoder | TorchDecoder], np.ndarray]) -> None:
        np.testing.assert_allclose(step(ours), step(theirs), atol=1e-4)
        assert ours.position == theirs.position

    both(lambda each: each.prefill(first))
    end = ours.position
    both(lambda each: each.decode(7))
    both(lambda each: each.decode(8))
    both(lambda each: each.prefill([text]))
    both(lambda each: each.prefill(second))
    both(lambda each: each.decode(1))
    for each in (ours, theirs):
        each.reset(end + 2)
    both(lambda each: each.prefill([text]))
    both(lambda each: each.prefill(second))
    for each in (ours, theirs):
        with pytest.raises(ValueError, match="part an image"):
            each.reset(end - 1)


def test_a_decode_step_writes_one_place_in_each_cache(made: Made) -> None:
    """Each part has its own length, and no buffer is copied."""
    _, bundle = made("qwen2", "pyramiddrop")
    decoder = engine(bundle)
    decoder.prefill(prompt(1))
    before = {name: buffer.copy() for name, buffer in decoder._cache.items()}
    length = decoder.position
    decoder.decode(1)
    for layer, keep in enumerate((TOKENS, 11, 7, 3)):
        for part in ("key", "value"):
            changed = np.abs(decoder._cache[f"{layer}.{part}"] - before[f"{layer}.{part}"]).sum(axis=(0, 1, 3))
            assert np.flatnonzero(changed).tolist() == [length - 2 * (TOKENS - keep)]


def test_of_equal_scores_the_first_tokens_are_kept(tmp_path: Path) -> None:
    model = tiny_model(replace(DECODER, token_drop=TokenDropSpec("fastv", "attention", TOKENS, (DropStage(1, 5),))))
    layer: Any = model.decoder.layers[0]
    attention = layer.self_attn
    attention.q_proj.weight.zero_()
    attention.q_proj.bias.zero_()
    graph = Graph(tiny_bundle(model, tmp_path / "bundle"))
    asked: list[Segment] = [
        np.arange(7, dtype=np.int32),
        np.ones((TOKENS, 64), np.float32),
        np.arange(5, dtype=np.int32),
    ]
    assert graph.kept(model.decoder, asked) == [[*range(12), *range(7 + TOKENS, 12 + TOKENS)]]


def test_embeddings_that_are_no_whole_image_are_refused(made: Made) -> None:
    decoder = engine(made("qwen2", "fastv")[1])
    with pytest.raises(InputError, match="3 embeddings in a row are no image of 16 tokens"):
        decoder.prefill([np.zeros((3, 64), np.float32)])
    assert decoder.position == 0


def test_a_graph_without_the_drop_is_refused(made: Made, tmp_path: Path) -> None:
    """A manifest that speaks of a drop, and a graph of another export."""
    model, bundle = made("qwen2", "fastv")
    plain = tiny_model(replace(KINDS["qwen2"], num_hidden_layers=4))
    write_decoder(plain.decoder, tmp_path, "fp32")
    with pytest.raises(BundleError, match="no input image_starts"):
        OnnxRuntimeDecoder(tmp_path / "decoder.onnx", tmp_path / "embed.onnx", bundle.spec, OPTIONS)
    assert isinstance(model.spec.decoder, DecoderSpec)
