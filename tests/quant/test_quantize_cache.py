"""The pass `kv_cache`: with an int8 cache ONNX Runtime answers nearly as with floats, in a quarter of the memory."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from decoders import DECODERS
from onnx_models import make_decoder, write_decoder
from tiny import tiny_model, tiny_with_tokenizer

from edgevlm.calibration.activations import Activations, Sequence
from edgevlm.calibration.layers import walk
from edgevlm.calibration.sources import open_calibration
from edgevlm.errors import CheckpointError, UnsupportedError
from edgevlm.models.decoder import Decoder
from edgevlm.models.vlm import VlmModel
from edgevlm.passes import PassContext
from edgevlm.pipeline.passes import parse_passes, plan_passes
from edgevlm.quant.cache_scales import CacheScales
from edgevlm.quant.quantize_cache import QuantizeCache, QuantizeCacheConfig, layer_scales
from edgevlm.recipe import PassEntry, Recipe
from edgevlm.runtimes.base import EngineOptions, Float32, Segment
from edgevlm.runtimes.onnxruntime import OnnxRuntimeDecoder
from edgevlm.spec import DecoderSpec, DropStage, TokenDropSpec

OPTIONS = EngineOptions(threads=1, context_length=64)
SEEN, LENGTH = 24, 50


def states(spec: DecoderSpec, length: int, seed: int) -> Float32:
    return np.random.default_rng(seed).standard_normal((length, spec.hidden_size)).astype(np.float32)


def calibrated(decoder: Decoder) -> Activations:
    """Four samples of `SEEN` positions."""
    rows = [torch.from_numpy(states(decoder.spec, SEEN, seed)) for seed in range(4)]
    known = Sequence(torch.arange(SEEN)[None], torch.empty(0), torch.empty(0))
    return Activations(decoder.spec, rows, [known] * 4)


@torch.no_grad()
def measured(decoder: Decoder) -> list[CacheScales]:
    return [layer_scales(step, decoder.spec.rotary_dim) for step in walk(decoder, calibrated(decoder))]


def engine(decoder: Decoder, folder: Path, **fields: object) -> OnnxRuntimeDecoder:
    folder.mkdir()
    path = write_decoder(decoder, folder, "fp32", **fields)  # type: ignore[arg-type]
    model = replace(tiny_model().spec, decoder=decoder.spec)
    return OnnxRuntimeDecoder(path, folder / "embed.onnx", model, OPTIONS)


def logits(run: OnnxRuntimeDecoder) -> Float32:
    """Of a prompt longer than the samples, of a token, and of a turn behind a part of it."""
    prompt: list[Segment] = [states(DECODERS["qwen2"], LENGTH, 9)]
    found = [run.prefill(prompt), run.decode(5).copy()]
    run.reset(20)
    return np.stack([*found, run.prefill([states(DECODERS["qwen2"], 7, 10)])])


@torch.no_grad()
@pytest.mark.parametrize("kind", DECODERS)
def test_an_int8_cache_answers_nearly_alike_in_a_quarter_of_the_memory(kind: str, tmp_path: Path) -> None:
    decoder = make_decoder(DECODERS[kind])
    scales = measured(decoder)
    full = engine(decoder, tmp_path / "float")
    narrow = engine(decoder, tmp_path / "int8", cache=scales)
    spec = decoder.spec
    numbers = 2 * spec.num_hidden_layers * spec.num_key_value_heads * spec.head_dim * OPTIONS.context_length
    assert (full.cache_bytes, narrow.cache_bytes) == (4 * numbers, numbers)
    expected, found = logits(full), logits(narrow)
    error = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert 0 < error.max() < 0.06


@torch.no_grad()
def test_keys_at_later_positions_stay_within_the_scales() -> None:
    """The same states, turned further than any sample was."""
    decoder = make_decoder(DECODERS["llama"])
    (first, *_) = measured(decoder)
    later = calibrated(decoder)
    later.sequences[:] = [replace(each, positions=each.positions + 40) for each in later.sequences]
    step = next(walk(decoder, later))
    largest = torch.zeros(())
    for sample in range(len(later)):
        _, (key, _) = step.layer(later.states[sample][None], later.rotary(sample), None, None)
        largest = torch.maximum(largest, key[0].abs().amax(dim=1))
    assert (largest.numpy() <= 127.01 * first.key).all()
    assert (largest.numpy() > 40 * first.key).all(), "nor are the scales far too large"


def run_pass(model: VlmModel) -> VlmModel:
    context = PassContext(open_calibration("scenes", 2), model, lambda *_: None)
    return QuantizeCache(QuantizeCacheConfig(), 0).run(model, context)


def test_the_pass_measures_every_layer_on_images(tmp_path: Path) -> None:
    model = run_pass(tiny_with_tokenizer(tmp_path))
    spec = model.spec.decoder
    assert len(model.cache_scales) == spec.num_hidden_layers
    for each in model.cache_scales:
        assert each.key.shape == each.value.shape == (spec.num_key_value_heads, spec.head_dim)
        assert min(each.key.min(), each.value.min()) > 0
    assert model.spec.notes[-1] == "kv_cache: keys and values are int8"


def test_keys_that_are_not_finite_name_the_layer(tmp_path: Path) -> None:
    model = tiny_with_tokenizer(tmp_path)
    model.decoder.layers[1].self_attn.k_proj.weight.data[3, 5] = float("nan")
    with pytest.raises(CheckpointError, match="not finite") as caught:
        run_pass(model)
    assert caught.value.where == "layers.1.self_attn"


def test_what_cannot_have_it_is_refused() -> None:
    entry = PassEntry(name="kv_cache")
    with pytest.raises(UnsupportedError, match="edgevlm run --kv-cache q8_0"):
        parse_passes(Recipe(model="m", format="gguf", passes=(entry,)))
    spec = tiny_model().spec
    drop = TokenDropSpec("fastv", "attention", 16, (DropStage(1, 4),))
    passes = parse_passes(Recipe(model="m", passes=(entry,)))
    with pytest.raises(UnsupportedError, match="keys in the cache"):
        plan_passes(
            passes, replace(spec, decoder=replace(spec.decoder, token_drop=drop)), open_calibration("scenes", 1)
        )
