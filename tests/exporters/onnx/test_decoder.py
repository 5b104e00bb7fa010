"""The decoder graphs of four families in ONNX Runtime against the torch decoder."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from decoders import DECODERS
from onnx_models import GrowingCache, SharedCache, make_decoder, rounded, session, write_decoder

from edgevlm.models.decoder import Decoder
from edgevlm.recipe import Precision
from edgevlm.spec import DecoderSpec

families = pytest.mark.parametrize("spec", DECODERS.values(), ids=DECODERS)
caches = pytest.mark.parametrize("cache", [GrowingCache, SharedCache])

#: A prompt, single tokens, and a second turn of several positions.
STEPS = (9, 1, 1, 5, 1)


def steps(decoder: Decoder) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Embeddings `[1, S, H]` of each step and torch's logits for them."""
    generator = torch.Generator().manual_seed(7)
    past, start = None, 0
    for length in STEPS:
        embeddings = torch.randn(1, length, decoder.spec.hidden_size, generator=generator)
        logits, past = decoder(embeddings, torch.arange(start, start + length)[None], past)
        start += length
        yield embeddings, logits


def largest_error(decoder: Decoder, run: GrowingCache | SharedCache) -> float:
    return max(float(np.abs(run(embeddings) - logits.numpy()).max()) for embeddings, logits in steps(decoder))


@families
@caches
def test_float_logits_equal_torch(
    spec: DecoderSpec, cache: type[GrowingCache] | type[SharedCache], tmp_path: Path
) -> None:
    decoder = make_decoder(spec)
    path = write_decoder(decoder, tmp_path, "fp32")
    assert largest_error(decoder, cache(path, spec)) < 1e-4


@families
@pytest.mark.parametrize("precision", ["int4", "int8"])
def test_quantized_logits_equal_torch_on_the_same_grid(spec: DecoderSpec, precision: Precision, tmp_path: Path) -> None:
    """Without rounding of activations the kernels compute exactly with what `dequantize` returns."""
    decoder = make_decoder(spec)
    path = write_decoder(decoder, tmp_path, precision, accuracy_level=0)
    assert largest_error(rounded(decoder, precision), GrowingCache(path, spec)) < 1e-4


@families
@pytest.mark.parametrize("precision", ["int4", "int8"])
def test_rounding_activations_costs_little(spec: DecoderSpec, precision: Precision, tmp_path: Path) -> None:
    """At accuracy level 4, which exports use. Logits are about 1 in size; a wrong layout is wrong by that much."""
    decoder = make_decoder(spec)
    path = write_decoder(decoder, tmp_path, precision)
    assert largest_error(rounded(decoder, precision), GrowingCache(path, spec)) < 0.1


def test_half_weights_compute_in_float(tmp_path: Path) -> None:
    decoder = make_decoder(DECODERS["phi2"])
    path = write_decoder(decoder, tmp_path, "fp16")
    for parameter in decoder.parameters():
        if parameter.ndim == 2:
            parameter.copy_(parameter.half())
    assert largest_error(decoder, GrowingCache(path, decoder.spec)) < 1e-4


@families
def test_kept_logits_are_the_last_ones(spec: DecoderSpec, tmp_path: Path) -> None:
    path = write_decoder(make_decoder(spec), tmp_path, "fp32")
    embeddings = torch.randn(1, 6, spec.hidden_size, generator=torch.Generator().manual_seed(3))
    whole = GrowingCache(path, spec)(embeddings)
    assert whole.shape == (1, 6, spec.vocab_size)
    for keep in (1, 2):
        kept = GrowingCache(path, spec)(embeddings, keep)
        assert kept.shape == (1, keep, spec.vocab_size)
        np.testing.assert_allclose(kept, whole[:, -keep:], atol=1e-5)


def test_batch_of_two(tmp_path: Path) -> None:
    spec = DECODERS["qwen2"]
    decoder = make_decoder(spec)
    graph = session(write_decoder(decoder, tmp_path, "fp32"))
    embeddings = torch.randn(2, 4, spec.hidden_size, generator=torch.Generator().manual_seed(5))
    empty = np.zeros((2, spec.num_key_value_heads, 0, spec.head_dim), np.float32)
    feed = {item.name: empty for item in graph.get_inputs() if item.name.startswith("past")}
    mask = np.ones((2, 4), np.int64)
    feed |= {"inputs_embeds": embeddings.numpy(), "attention_mask": mask, "num_logits_to_keep": np.array(0)}
    logits, _ = decoder(embeddings, torch.arange(4).expand(2, -1))
    np.testing.assert_allclose(graph.run(["logits"], feed)[0], logits.numpy(), atol=1e-4)


@families
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int4"])
def test_checker_accepts(spec: DecoderSpec, precision: Precision, tmp_path: Path) -> None:
    path = write_decoder(make_decoder(spec), tmp_path, precision)
    onnx.checker.check_model(str(path))
    onnx.checker.check_model(str(tmp_path / "embed.onnx"))


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int4"])
def test_tied_table_is_written_once(precision: Precision, tmp_path: Path) -> None:
    """Lookup and head point at the same bytes, and the decoder's own file has no room for another table."""
    write_decoder(make_decoder(DECODERS["qwen2"]), tmp_path, precision)

    def places(name: str) -> set[tuple[str, str]]:
        graph = onnx.load(str(tmp_path / name), load_external_data=False).graph
        entries = [{item.key: item.value for item in tensor.external_data} for tensor in graph.initializer]
        return {(entry["location"], entry["offset"]) for entry in entries if entry}

    table = places("embed.onnx")
    assert table
    assert table == {place for place in places("decoder.onnx") if place[0] == "embed.onnx_data"}


@families
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int4"])
def test_embedding_rows_are_those_of_the_stored_table(spec: DecoderSpec, precision: Precision, tmp_path: Path) -> None:
    decoder = make_decoder(spec)
    write_decoder(decoder, tmp_path, precision)
    ids = np.array([[0, 5, spec.vocab_size - 1]])
    rows = session(tmp_path / "embed.onnx").run(None, {"input_ids": ids})[0]
    table = decoder.embed_tokens.weight
    if precision == "fp16":
        table = table.half().float()
    elif precision != "fp32":
        table = rounded(decoder, precision).embed_tokens.weight
    np.testing.assert_allclose(rows, table[ids].numpy(), atol=1e-7)
