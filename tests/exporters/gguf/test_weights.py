"""Matrices whose codes an algorithm chose reach llama.cpp as they are; the others are rounded beside them."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import gguf
import gguf.quants
import numpy as np
import pytest
import torch
from gguf_models import LLAMA, QWEN2, make_model

from edgevlm.errors import CheckpointError, UnsupportedError
from edgevlm.exporters.gguf.exporter import export
from edgevlm.exporters.gguf.layout import reorder_rotary, tensor_name
from edgevlm.models.vlm import VlmModel
from edgevlm.quant import gguf_grid, rtn
from edgevlm.quant.tensor import QuantizedTensor, QuantScheme
from edgevlm.runtimes.base import EngineOptions
from edgevlm.runtimes.llama_cpp import LlamaCppDecoder
from edgevlm.spec import DecoderSpec

Q4_0, Q4_1, Q8_0 = (
    QuantScheme(4, 32, half_scales=True),
    QuantScheme(4, 32, symmetric=False, half_scales=True),
    QuantScheme(8, 32, half_scales=True),
)


def silent(*_: object) -> None:
    """Progress that nobody watches."""


def chosen(weight: torch.Tensor, scheme: QuantScheme) -> QuantizedTensor:
    """Codes that no rounding to the nearest would give: each is moved by one, up or down."""
    tensor = rtn.quantize(weight, scheme)
    moves = np.random.default_rng(0).integers(-1, 2, tensor.codes.shape)
    codes = (tensor.codes.astype(int) + moves).clip(0, (1 << scheme.bits) - 1).astype(np.uint8)
    if tensor.zero_points is None:
        return replace(tensor, codes=codes)
    # Offsets that are float16 numbers.
    scales = gguf_grid.storable_scales(torch.from_numpy(tensor.scales), symmetric=False).numpy()
    return replace(tensor, codes=codes, scales=scales)


def model_with(decoder: DecoderSpec, schemes: Mapping[str, QuantScheme], files: dict[str, Path]) -> VlmModel:
    model = make_model(decoder, files)
    state = model.decoder.state_dict()
    return replace(model, quantized={name: chosen(state[name], scheme) for name, scheme in schemes.items()})


def held(path: Path) -> dict[str, gguf.ReaderTensor]:
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


SCHEMES = {
    "embed_tokens.weight": Q8_0,
    "layers.0.self_attn.q_proj.weight": Q4_0,
    "layers.1.self_attn.k_proj.weight": Q4_1,
    "layers.1.mlp.down_proj.weight": Q8_0,
}


@pytest.mark.parametrize("decoder", [QWEN2, LLAMA], ids=["qwen2", "llama"])
def test_chosen_codes_are_read_back_exactly(decoder: DecoderSpec, files: dict[str, Path], tmp_path: Path) -> None:
    """Rows of queries and keys, too, in llama's order."""
    model = model_with(decoder, SCHEMES, files)
    (artifact,) = export(model, tmp_path, gguf_type="q4_0", progress=silent)
    path = tmp_path / artifact.path
    tensors, state = held(path), model.decoder.state_dict()
    assert gguf.GGUFReader(path).fields["general.file_type"].contents() == gguf.LlamaFileType.MOSTLY_Q4_0
    for source, asked in model.quantized.items():
        assert isinstance(asked, QuantizedTensor)
        name = tensor_name(source)
        assert name is not None
        read = gguf.quants.dequantize(tensors[name].data, tensors[name].tensor_type)
        np.testing.assert_array_equal(read, reorder_rotary(name, asked.dequantize(), decoder), source)
    for name, tensor in tensors.items():
        source = next(each for each in state if tensor_name(each) == name)
        if source not in model.quantized and state[source].dim() > 1:
            expected = reorder_rotary(name, state[source].numpy(), decoder)
            np.testing.assert_array_equal(tensor.data, gguf.quants.quantize(expected, gguf.GGMLQuantizationType.Q4_0))
        elif state[source].dim() == 1:
            np.testing.assert_array_equal(tensor.data, reorder_rotary(name, state[source].numpy(), decoder))
    bits = sum(8 * tensor.n_bytes for tensor in tensors.values())
    assert artifact.bits_per_weight == bits / sum(value.numel() for value in state.values())


@pytest.mark.parametrize("decoder", [QWEN2, LLAMA], ids=["qwen2", "llama"])
def test_llama_cpp_computes_with_the_chosen_codes(decoder: DecoderSpec, files: dict[str, Path], tmp_path: Path) -> None:
    model = model_with(decoder, SCHEMES, files)
    export(model, tmp_path, gguf_type="f32", progress=silent)
    engine = LlamaCppDecoder(tmp_path / "model-f32.gguf", decoder, EngineOptions(threads=1))
    ids = np.array([5, 700, 32, 8, 1000], np.int32)
    logits = engine.prefill([ids])
    engine.close()
    rounded = {name: torch.from_numpy(each.dequantize()) for name, each in model.quantized.items()}  # type: ignore[union-attr]
    found = []
    for changes in (rounded, {}):
        twin = make_model(decoder, files)
        twin.decoder.load_state_dict({**twin.decoder.state_dict(), **changes})
        rows = twin.decoder.embed_tokens(torch.from_numpy(ids))[None]
        found.append(twin.decoder(rows, torch.arange(len(ids))[None], last_only=True)[0][0, 0].numpy())
    # llama.cpp rounds what enters a quantized matrix to 8 bits.
    error, change = (float(np.linalg.norm(logits - each) / np.linalg.norm(each)) for each in found)
    assert error < min(0.02, change / 5)


def test_schemes_without_codes_are_rounded_as_llama_cpp_rounds(files: dict[str, Path], tmp_path: Path) -> None:
    model = make_model(QWEN2, files)
    up, down = "layers.0.mlp.up_proj.weight", "layers.0.mlp.down_proj.weight"
    export(replace(model, quantized={up: Q4_0, down: Q8_0}), tmp_path, gguf_type="f16", progress=silent)
    tensors, state = held(tmp_path / "model-f16.gguf"), model.decoder.state_dict()
    for source, kind in ((up, "Q4_0"), (down, "Q8_0")):
        expected = gguf.quants.quantize(state[source].numpy(), gguf.GGMLQuantizationType[kind])
        np.testing.assert_array_equal(tensors[str(tensor_name(source))].data, expected)
    assert tensors["token_embd.weight"].tensor_type == gguf.GGMLQuantizationType.F16


@pytest.mark.parametrize(
    ("quantized", "gguf_type", "reason"),
    [
        ({"layers.0.mlp.up_proj.weight": replace(Q4_0, group_size=64)}, "q4_0", "groups are of 64"),
        ({"layers.0.mlp.up_proj.weight": replace(Q4_0, half_scales=False)}, "q4_0", "not float16"),
        ({"layers.0.mlp.up_proj.weight": Q4_0}, "q4_k_m", "takes no codes"),
        ({"lm_head.weight": Q4_0}, "q4_0", "no such matrix"),
    ],
)
def test_what_gguf_cannot_hold_is_refused_by_name(
    quantized: dict[str, QuantScheme], gguf_type: str, reason: str, files: dict[str, Path], tmp_path: Path
) -> None:
    model = replace(make_model(QWEN2, files), quantized=quantized)
    with pytest.raises(UnsupportedError, match=reason) as caught:
        export(model, tmp_path, gguf_type=gguf_type, progress=silent)
    assert caught.value.where in (*quantized, f"--gguf-type {gguf_type}")


def test_weights_beside_chosen_codes_must_be_finite(files: dict[str, Path], tmp_path: Path) -> None:
    model = model_with(QWEN2, {"embed_tokens.weight": Q8_0}, files)
    model.decoder.layers[1].mlp.up_proj.weight[3, 5] = float("nan")
    with pytest.raises(CheckpointError, match="not finite") as caught:
        export(model, tmp_path, gguf_type="q4_0", progress=silent)
    assert caught.value.where == "layers.1.mlp.up_proj.weight"
