"""Decoders with positions on three axes: every engine against transformers' Qwen2-VL, over images, turns and resets."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf_models import ROWS, make_model, write_tokenizer
from onnx_models import make_decoder, write_decoder
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from edgevlm.errors import BundleError
from edgevlm.exporters.gguf.exporter import export
from edgevlm.models.vlm import VlmModel
from edgevlm.runtimes.base import DecoderEngine, EngineOptions, Float32, Segment
from edgevlm.runtimes.llama_cpp import LlamaCppDecoder
from edgevlm.runtimes.onnxruntime import OnnxRuntimeDecoder
from edgevlm.runtimes.positions import RotaryPositions
from edgevlm.runtimes.torch import TorchDecoder
from edgevlm.spec import DecoderSpec

SPEC = DecoderSpec(
    architecture="qwen2vl",
    vocab_size=ROWS,
    hidden_size=64,
    intermediate_size=160,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    rotary_dim=16,
    rope_theta=1e4,
    norm_eps=1e-6,
    max_position_embeddings=1024,
    qkv_bias=True,
    rope_sections=(2, 3, 3),
)
OPTIONS = EngineOptions(threads=1, context_length=800)
IMAGE, IMAGE_ID = 1, 7


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> VlmModel:
    return make_model(SPEC, write_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(scope="module")
def original(model: VlmModel) -> Any:
    """transformers' model with the same decoder weights."""
    text = {
        "vocab_size": SPEC.vocab_size,
        "hidden_size": SPEC.hidden_size,
        "intermediate_size": SPEC.intermediate_size,
        "num_hidden_layers": SPEC.num_hidden_layers,
        "num_attention_heads": SPEC.num_attention_heads,
        "num_key_value_heads": SPEC.num_key_value_heads,
        "max_position_embeddings": SPEC.max_position_embeddings,
        "rms_norm_eps": SPEC.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": SPEC.rope_theta, "mrope_section": [2, 3, 3]},
    }
    vision = {"depth": 1, "embed_dim": 16, "hidden_size": SPEC.hidden_size, "num_heads": 2}
    config = Qwen2VLConfig(text_config=text, vision_config=vision, image_token_id=IMAGE_ID, tie_word_embeddings=True)
    theirs = Qwen2VLForConditionalGeneration(config).eval().requires_grad_(False)
    theirs.model.language_model.load_state_dict(model.decoder.state_dict())
    return theirs


@pytest.fixture(scope="module")
def files(model: VlmModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mrope")
    write_decoder(model.decoder, folder, "fp32")
    export(model, folder, gguf_type="f32", progress=lambda *_: None)
    return folder


@pytest.fixture(params=["torch", "onnxruntime", "llama_cpp"])
def engine(request: pytest.FixtureRequest, model: VlmModel, files: Path) -> Iterator[DecoderEngine]:
    makers: dict[str, Callable[[], DecoderEngine]] = {
        "torch": lambda: TorchDecoder(model, OPTIONS),
        "onnxruntime": lambda: OnnxRuntimeDecoder(files / "decoder.onnx", files / "embed.onnx", model.spec, OPTIONS),
        "llama_cpp": lambda: LlamaCppDecoder(files / "model-f32.gguf", SPEC, OPTIONS),
    }
    decoder = makers[request.param]()
    yield decoder
    decoder.close()


def ids(*values: int) -> Segment:
    return np.array(values, np.int32)


def image(rows: int, columns: int) -> Float32:
    values = np.random.default_rng(rows).standard_normal((rows, columns, SPEC.hidden_size))
    return values.astype(np.float32)


def their_positions(original: Any, segments: list[Segment]) -> torch.Tensor:
    """`[3, 1, L]` as transformers finds them from ids, kinds of tokens and the images' grids."""
    tokens = np.concatenate([np.full(s.size // s.shape[-1], IMAGE_ID) if s.ndim == 3 else s for s in segments])
    kinds = np.concatenate([np.full(s.size // s.shape[-1] if s.ndim == 3 else len(s), s.ndim == 3) for s in segments])
    grids = [[1, 2 * s.shape[0], 2 * s.shape[1]] for s in segments if s.ndim == 3]
    positions: torch.Tensor = original.model.get_rope_index(
        torch.from_numpy(tokens.astype(np.int64))[None],
        torch.from_numpy(kinds.astype(np.int64))[None],
        torch.tensor(grids) if grids else None,
    )[0]
    return positions


def their_logits(original: Any, segments: list[Segment]) -> Float32:
    """Logits of the last position of one pass over everything."""
    table = original.model.language_model.embed_tokens
    rows = [
        torch.from_numpy(s.reshape(-1, s.shape[-1])) if s.ndim == 3 else table(torch.from_numpy(s)) for s in segments
    ]
    states = original.model.language_model(
        inputs_embeds=torch.cat(rows)[None], position_ids=their_positions(original, segments), use_cache=False
    )
    logits: Float32 = original.lm_head(states.last_hidden_state[0, -1]).numpy()
    return logits


def assert_same(engine: DecoderEngine, ours: Float32, theirs: Float32) -> None:
    """llama.cpp keeps keys and values in float16."""
    np.testing.assert_allclose(ours, theirs, atol=1e-2 if isinstance(engine, LlamaCppDecoder) else 1e-4)


PORTRAIT = [ids(5, 6, 9), image(5, 2), ids(9, 10)]
LANDSCAPE = [ids(5), image(2, 6), ids(9, 10)]
TWO = [ids(5, 6), image(4, 3), ids(11), image(2, 5), ids(8)]
NEIGHBOURS = [ids(5, 6), image(3, 3), ids(8)]
PROMPTS = [PORTRAIT, LANDSCAPE, TWO, NEIGHBOURS, [ids(5, 6, 7)]]


@pytest.mark.parametrize("segments", PROMPTS)
def test_positions_equal_those_of_transformers(original: Any, segments: list[Segment]) -> None:
    expected = their_positions(original, segments)[:, 0].numpy()
    positions = RotaryPositions(100)
    np.testing.assert_array_equal(positions.append(0, segments), expected)
    assert positions.advance(expected.shape[1]) == expected.max() + 1


def test_positions_continue_from_any_place(original: Any) -> None:
    positions = RotaryPositions(100)
    positions.append(0, TWO)
    place = 2 + 12 + 1  # before the second image
    expected = their_positions(original, [*TWO[:3], *PORTRAIT])[:, 0, place:].numpy()
    np.testing.assert_array_equal(positions.append(place, PORTRAIT), expected)


@pytest.mark.parametrize("segments", PROMPTS)
def test_prompts_and_tokens_after_them(original: Any, engine: DecoderEngine, segments: list[Segment]) -> None:
    assert_same(engine, engine.prefill(segments), their_logits(original, segments))
    assert_same(engine, engine.decode(17), their_logits(original, [*segments, ids(17)]))
    assert_same(engine, engine.decode(3), their_logits(original, [*segments, ids(17, 3)]))


def test_a_second_turn_goes_on_behind_the_image(original: Any, engine: DecoderEngine) -> None:
    engine.prefill(PORTRAIT)
    engine.decode(17)
    assert_same(engine, engine.prefill(LANDSCAPE), their_logits(original, [*PORTRAIT, ids(17), *LANDSCAPE]))


def test_reset_keeps_an_image_and_its_positions(original: Any, engine: DecoderEngine) -> None:
    engine.prefill(TWO)
    for token in range(10):
        engine.decode(token)
    for keep, kept in ((2 + 12 + 1 + 10, TWO[:4]), (2 + 12, TWO[:2]), (2, TWO[:1])):
        engine.reset(keep)
        assert engine.position == keep
        assert_same(engine, engine.prefill([ids(40, 41)]), their_logits(original, [*kept, ids(40, 41)]))
        assert_same(engine, engine.decode(42), their_logits(original, [*kept, ids(40, 41, 42)]))


def test_an_image_may_lie_across_two_batches(original: Any, engine: DecoderEngine) -> None:
    """llama.cpp takes 512 at a time."""
    segments = [ids(*range(100, 510)), image(10, 20), ids(9, 10)]
    assert_same(engine, engine.prefill(segments), their_logits(original, segments))


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_quantized_graph_stays_near(model: VlmModel, original: Any, tmp_path: Path, precision: Any) -> None:
    write_decoder(model.decoder, tmp_path, precision)
    engine = OnnxRuntimeDecoder(tmp_path / "decoder.onnx", tmp_path / "embed.onnx", model.spec, OPTIONS)
    assert np.corrcoef(engine.prefill(TWO), their_logits(original, TWO))[0, 1] > 0.95


def test_a_graph_without_positions_is_refused(model: VlmModel, tmp_path: Path) -> None:
    write_decoder(make_decoder(replace(SPEC, rope_sections=())), tmp_path, "fp32")
    with pytest.raises(BundleError, match="position_ids"):
        OnnxRuntimeDecoder(tmp_path / "decoder.onnx", tmp_path / "embed.onnx", model.spec, OPTIONS)
