"""The ONNX Runtime engines compute what the IR does, in place, from any position."""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest
import torch
from tiny import TOKENS, tiny_bundle

from edgevlm.bundle import Bundle
from edgevlm.errors import BundleError, EngineError, InputError
from edgevlm.models.vlm import VlmModel
from edgevlm.runtimes.base import EngineOptions, Float32, Segment
from edgevlm.runtimes.checks import checked_features
from edgevlm.runtimes.onnxruntime import OnnxRuntimeDecoder, OnnxRuntimeVision
from edgevlm.runtimes.torch import TorchDecoder, TorchVision

OPTIONS = EngineOptions(threads=1, context_length=96)


@pytest.fixture
def decoder(bundle: Bundle) -> OnnxRuntimeDecoder:
    return open_decoder(bundle)


def open_decoder(bundle: Bundle, options: EngineOptions = OPTIONS) -> OnnxRuntimeDecoder:
    paths = bundle.artifact("decoder", ".onnx"), bundle.artifact("embed", ".onnx")
    return OnnxRuntimeDecoder(*paths, bundle.spec, options)


def prompt(seed: int = 0) -> list[Segment]:
    """Ids, an image, ids."""
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(TOKENS, 64)).astype(np.float32)
    return [rng.integers(0, 1000, 7).astype(np.int32), image, rng.integers(0, 1000, 5).astype(np.int32)]


def whole_pass(model: VlmModel, segments: list[Segment]) -> Float32:
    """The IR on the whole sequence at once, without any cache."""
    parts = [
        torch.from_numpy(part) if part.ndim == 2 else model.decoder.embed_tokens(torch.from_numpy(part).long())
        for part in segments
    ]
    embeddings = torch.cat(parts)[None]
    with torch.inference_mode():
        logits, _ = model.decoder(embeddings, torch.arange(embeddings.shape[1])[None])
    result: Float32 = logits[0].numpy()
    return result


def test_image_embeddings_equal_torch(model: VlmModel, bundle: Bundle) -> None:
    pixels = np.random.default_rng(0).random((2, 3, 64, 64), dtype=np.float32)
    engine = OnnxRuntimeVision(bundle.artifact("vision", ".onnx"), bundle.spec, OPTIONS)
    np.testing.assert_allclose(engine.encode(pixels), TorchVision(model).encode(pixels), atol=1e-5)


def half_precision_graph(path: Path) -> int:
    """Write a graph, `[1, 3, 64, 64]` to `[1, 2, 64]`, of one half-precision linear layer; bytes of its weight."""
    helper, kinds = onnx.helper, onnx.TensorProto
    weight = np.random.default_rng(0).normal(size=(6144, 8192)).astype(np.float16) / 64
    nodes = [
        helper.make_node("Reshape", ["pixel_values", "rows"], ["x"]),
        helper.make_node("Cast", ["weight"], ["wide"], to=kinds.FLOAT),
        helper.make_node("MatMul", ["x", "wide"], ["y"]),
        helper.make_node("Slice", ["y", "from", "to", "axis"], ["image_features"]),
    ]
    constants = {"rows": [1, 2, 6144], "from": [0], "to": [64], "axis": [2]}
    initializers = [onnx.numpy_helper.from_array(np.array(value), name) for name, value in constants.items()]
    graph = helper.make_graph(
        nodes,
        "vision",
        [helper.make_tensor_value_info("pixel_values", kinds.FLOAT, [1, 3, 64, 64])],
        [helper.make_tensor_value_info("image_features", kinds.FLOAT, [1, 2, 64])],
        [onnx.numpy_helper.from_array(weight, "weight"), *initializers],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, path, save_as_external_data=True, location="weights")
    return weight.nbytes


def test_half_precision_weights_need_not_be_widened_for_good(bundle: Bundle, tmp_path: Path) -> None:
    """Otherwise a large vision tower takes twice its size again beside the original that it is verified against."""
    size = half_precision_graph(tmp_path / "vision.onnx")
    vision = replace(bundle.spec.vision, image_tokens=2)
    spec, pixels = (
        replace(bundle.spec, vision=vision),
        np.random.default_rng(1).random((1, 3, 64, 64), dtype=np.float32),
    )
    held, engines = [], []
    for low_memory in (True, False):
        before = psutil.Process().memory_info().rss
        engines.append(OnnxRuntimeVision(tmp_path / "vision.onnx", spec, replace(OPTIONS, low_memory=low_memory)))
        held.append(psutil.Process().memory_info().rss - before)
    low, usual = (engine.encode(pixels) for engine in engines)
    np.testing.assert_allclose(low, usual, rtol=1e-4, atol=1e-5)
    assert held[0] < size / 2 < 1.5 * size < held[1]


def test_prefill_and_decode_equal_one_whole_pass(model: VlmModel, decoder: OnnxRuntimeDecoder) -> None:
    tokens = np.array([3, 500, 999, 3], np.int32)
    expected = whole_pass(model, [*prompt(), tokens])[-5:]
    actual = [decoder.prefill(prompt()), *(decoder.decode(int(token)).copy() for token in tokens)]
    np.testing.assert_allclose(np.stack(actual), expected, atol=1e-4)
    assert decoder.position == 7 + TOKENS + 5 + 4


@pytest.mark.parametrize("cut", [1, 2])
def test_a_prompt_may_come_in_parts(model: VlmModel, decoder: OnnxRuntimeDecoder, cut: int) -> None:
    decoder.prefill(prompt()[:cut])
    logits = decoder.prefill(prompt()[cut:])
    np.testing.assert_allclose(logits, whole_pass(model, prompt())[-1], atol=1e-4)


def test_reset_keeps_the_front_and_forgets_the_rest(model: VlmModel, decoder: OnnxRuntimeDecoder) -> None:
    first, second = prompt(), prompt(1)
    decoder.prefill(first)
    for token in range(30):
        decoder.decode(token)
    decoder.reset(keep=7 + TOKENS)
    logits = decoder.prefill([second[2]])
    np.testing.assert_allclose(logits, whole_pass(model, [*first[:2], second[2]])[-1], atol=1e-4)
    decoder.reset()
    np.testing.assert_allclose(decoder.prefill(second), whole_pass(model, second)[-1], atol=1e-4)


def test_nothing_stale_is_read_from_the_buffers(model: VlmModel, decoder: OnnxRuntimeDecoder) -> None:
    for buffer in decoder._cache.values():
        buffer.fill(1e4)
    np.testing.assert_allclose(decoder.prefill(prompt()), whole_pass(model, prompt())[-1], atol=1e-4)


def test_the_cache_never_moves(decoder: OnnxRuntimeDecoder) -> None:
    """The graph writes into the buffers that the engine owns; a copy would leave them at zero."""
    decoder.prefill(prompt())
    before = {name: buffer.copy() for name, buffer in decoder._cache.items()}
    decoder.decode(1)
    for name, buffer in decoder._cache.items():
        changed = np.abs(buffer - before[name]).sum(axis=(0, 1, 3))
        assert np.flatnonzero(changed).tolist() == [7 + TOKENS + 5]


def test_prefill_logits_stay_and_decode_logits_may_be_reused(decoder: OnnxRuntimeDecoder) -> None:
    logits = decoder.prefill(prompt())
    before = logits.copy()
    decoder.decode(1)
    np.testing.assert_array_equal(logits, before)


def test_the_context_can_be_filled_and_not_more(decoder: OnnxRuntimeDecoder) -> None:
    decoder.prefill([np.zeros(95, np.int32)])
    assert np.isfinite(decoder.decode(1)).all()
    assert decoder.position == decoder.context_length == 96
    with pytest.raises(InputError, match="97 positions, the context has 96"):
        decoder.decode(1)
    decoder.reset()
    with pytest.raises(InputError, match="context"):
        decoder.prefill([np.zeros(97, np.int32)])
    with pytest.raises(InputError, match="nothing"):
        decoder.prefill([])


def test_the_context_length_is_the_models_at_most(bundle: Bundle) -> None:
    assert open_decoder(bundle, EngineOptions(threads=1)).context_length == 256
    for length in (257, -1):
        with pytest.raises(InputError, match="context"):
            open_decoder(bundle, EngineOptions(threads=1, context_length=length))


@pytest.mark.parametrize("precision", ["fp16", "int8", "int4"])
def test_other_precisions_stay_close(model: VlmModel, tmp_path: Path, precision: str) -> None:
    decoder = open_decoder(tiny_bundle(model, tmp_path / "bundle", precision))  # type: ignore[arg-type]
    actual, expected = decoder.prefill(prompt()), whole_pass(model, prompt())[-1]
    cosine = actual @ expected / np.linalg.norm(actual) / np.linalg.norm(expected)
    assert cosine > {"fp16": 0.9999, "int8": 0.995, "int4": 0.9}[precision]
    assert np.isfinite(decoder.decode(3)).all()


def test_a_wrong_size_is_an_engine_error(bundle: Bundle) -> None:
    engine = OnnxRuntimeVision(bundle.artifact("vision", ".onnx"), bundle.spec, OPTIONS)
    with pytest.raises(EngineError, match="failed"):
        engine.encode(np.zeros((1, 3, 32, 32), np.float32))
    with pytest.raises(EngineError, match="returned"):
        checked_features(np.zeros((1, 15, 64), np.float32), 1, 16, 64)


@pytest.mark.parametrize("tokens", [4, 17])
def test_a_graph_of_another_number_of_image_tokens_is_a_bad_bundle(tokens: int, bundle: Bundle) -> None:
    other = replace(bundle.spec, vision=replace(bundle.spec.vision, image_tokens=tokens))
    with pytest.raises(BundleError, match=f"makes 16 image tokens of 64, the spec says {tokens} of 64"):
        OnnxRuntimeVision(bundle.artifact("vision", ".onnx"), other, OPTIONS)


def test_embeddings_that_are_not_finite_are_an_engine_error(bundle: Bundle) -> None:
    engine = OnnxRuntimeVision(bundle.artifact("vision", ".onnx"), bundle.spec, OPTIONS)
    with pytest.raises(EngineError, match="finite"):
        engine.encode(np.full((1, 3, 64, 64), np.nan, np.float32))


def test_a_damaged_graph_is_an_engine_error(bundle: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "vision.onnx"
    path.write_bytes(b"\x08\x0a nonsense")
    with pytest.raises(EngineError, match="cannot load") as caught:
        OnnxRuntimeVision(path, bundle.spec, OPTIONS)
    assert caught.value.where == str(path)


def test_a_decoder_of_another_model_is_refused(bundle: Bundle) -> None:
    vision = bundle.artifact("vision", ".onnx")
    with pytest.raises(BundleError, match="no input inputs_embeds"):
        OnnxRuntimeDecoder(vision, bundle.artifact("embed", ".onnx"), bundle.spec, OPTIONS)


def test_torch_engine_equals_a_whole_pass(model: VlmModel) -> None:
    engine = TorchDecoder(model, OPTIONS)
    tokens = np.array([3, 500], np.int32)
    actual = [engine.prefill(prompt()), *(engine.decode(int(token)) for token in tokens)]
    np.testing.assert_allclose(np.stack(actual), whole_pass(model, [*prompt(), tokens])[-3:], atol=1e-5)
    engine.reset(keep=7)
    np.testing.assert_allclose(engine.prefill(prompt()[1:]), whole_pass(model, prompt())[-1], atol=1e-5)
    with pytest.raises(InputError, match="context"):
        engine.prefill([np.zeros(96, np.int32)])


def test_torch_engine_leaves_the_published_dtype(model: VlmModel) -> None:
    half = replace(model, decoder=copy.deepcopy(model.decoder).half())
    logits = TorchDecoder(half, OPTIONS).prefill(prompt())
    assert half.decoder.embed_tokens.weight.dtype == torch.float16
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, whole_pass(model, prompt())[-1], atol=0.05)
