"""What an exported GGUF holds: the weights, bit for bit; the right names, numbers and storage types."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import gguf.quants
import numpy as np
import pytest
import torch
from gguf_models import LLAMA, PHI2, QWEN2, make_model

from edgevlm.errors import CheckpointError, EdgeVLMError, EngineError, InputError, UnsupportedError
from edgevlm.exporters.gguf.exporter import export
from edgevlm.exporters.gguf.layout import supports
from edgevlm.runtimes.llama_quantize import QuantizeChoice, quantize_gguf
from edgevlm.spec import DecoderSpec

WIDE = replace(QWEN2, hidden_size=256, intermediate_size=512, head_dim=64, rotary_dim=64)


def written(decoder: DecoderSpec, files: dict[str, Path], out: Path, gguf_type: str) -> gguf.GGUFReader:
    export(make_model(decoder, files), out, gguf_type=gguf_type, progress=lambda *_: None)
    return gguf.GGUFReader(out / f"model-{gguf_type}.gguf")


def tensors(reader: gguf.GGUFReader) -> dict[str, Any]:
    return {tensor.name: tensor for tensor in reader.tensors}


@pytest.mark.parametrize("gguf_type", ["f32", "f16"])
def test_unquantized_matrices_equal_the_source(files: dict[str, Path], tmp_path: Path, gguf_type: str) -> None:
    held = tensors(written(QWEN2, files, tmp_path, gguf_type))
    state = make_model(QWEN2, files).decoder.state_dict()
    assert len(held) == len(state)
    for ours, theirs in (
        ("token_embd.weight", "embed_tokens.weight"),
        ("output_norm.weight", "norm.weight"),
        ("blk.1.attn_norm.weight", "layers.1.input_layernorm.weight"),
        ("blk.0.attn_q.weight", "layers.0.self_attn.q_proj.weight"),
        ("blk.1.attn_k.bias", "layers.1.self_attn.k_proj.bias"),
        ("blk.0.ffn_norm.weight", "layers.0.post_attention_layernorm.weight"),
        ("blk.1.ffn_down.weight", "layers.1.mlp.down_proj.weight"),
    ):
        np.testing.assert_array_equal(held[ours].data.astype(np.float32), state[theirs].numpy(), ours)


def test_llama_query_rows_are_reordered_for_interleaved_rotary(files: dict[str, Path], tmp_path: Path) -> None:
    held = tensors(written(LLAMA, files, tmp_path, "f32"))["blk.0.attn_q.weight"].data
    source = make_model(LLAMA, files).decoder.state_dict()["layers.0.self_attn.q_proj.weight"].numpy()
    half = LLAMA.head_dim // 2
    for head in range(LLAMA.num_attention_heads):
        start = head * LLAMA.head_dim
        for pair in (0, 1, half - 1):
            np.testing.assert_array_equal(held[start + 2 * pair], source[start + pair])
            np.testing.assert_array_equal(held[start + 2 * pair + 1], source[start + half + pair])


@pytest.mark.parametrize("gguf_type", ["q8_0", "q4_0"])
def test_quantized_blocks_equal_the_reference(files: dict[str, Path], tmp_path: Path, gguf_type: str) -> None:
    kind = gguf.GGMLQuantizationType[gguf_type.upper()]
    full = tensors(written(QWEN2, files, tmp_path, "f16"))
    for name, tensor in tensors(written(QWEN2, files, tmp_path, gguf_type)).items():
        source = full[name].data.astype(np.float32)
        if source.ndim == 1:
            np.testing.assert_array_equal(tensor.data, source, name)
        else:
            assert tensor.tensor_type == kind, name
            np.testing.assert_array_equal(tensor.data, gguf.quants.quantize(source, kind), name)


def test_bfloat16_source_is_converted(files: dict[str, Path], tmp_path: Path) -> None:
    model = make_model(QWEN2, files)
    model.decoder.to(torch.bfloat16)
    export(model, tmp_path, gguf_type="f16", progress=lambda *_: None)
    held = tensors(gguf.GGUFReader(tmp_path / "model-f16.gguf"))["token_embd.weight"].data
    np.testing.assert_array_equal(held.astype(np.float32), model.decoder.embed_tokens.weight.float().numpy())


@pytest.mark.parametrize("gguf_type", ["f16", "q4_0", "q4_k_m"])
def test_tied_head_is_written_once(files: dict[str, Path], tmp_path: Path, gguf_type: str) -> None:
    assert "output.weight" not in tensors(written(QWEN2, files, tmp_path, gguf_type))


def test_untied_head_is_four_bit_at_q4_0(files: dict[str, Path], tmp_path: Path) -> None:
    held = tensors(written(LLAMA, files, tmp_path, "q4_0"))
    assert held["output.weight"].tensor_type == gguf.GGMLQuantizationType.Q4_0


@pytest.mark.parametrize(("gguf_type", "bits"), [("f32", 32), ("f16", 16), ("q8_0", 8.5), ("q4_0", 4.5)])
def test_bits_per_weight_are_counted(files: dict[str, Path], tmp_path: Path, gguf_type: str, bits: float) -> None:
    model = make_model(QWEN2, files)
    (artifact,) = export(model, tmp_path, gguf_type=gguf_type, progress=lambda *_: None)
    parameters = list(model.decoder.parameters())
    payload = sum(p.numel() * (bits if p.dim() > 1 else 32) for p in parameters)
    assert artifact.parameters == sum(p.numel() for p in parameters)
    assert artifact.bits_per_weight == pytest.approx(payload / artifact.parameters)


def test_fallback_of_q4_k_m_is_told(files: dict[str, Path], tmp_path: Path) -> None:
    told: list[str] = []
    (narrow,) = export(
        make_model(QWEN2, files), tmp_path, gguf_type="q4_k_m", progress=lambda _done, _all, what: told.append(what)
    )
    assert "Q5_0" in told[-1]
    assert f"{narrow.bits_per_weight:.2f} bits" in told[-1]
    (wide,) = export(
        make_model(WIDE, files), tmp_path, gguf_type="q4_k_m", progress=lambda _done, _all, what: told.append(what)
    )
    assert "Q5_0" not in told[-1]
    assert wide.bits_per_weight < 5.6 < 6 < narrow.bits_per_weight


def test_metadata_describes_the_decoder(files: dict[str, Path], tmp_path: Path) -> None:
    fields = written(QWEN2, files, tmp_path, "f16").fields
    assert fields["general.architecture"].contents() == "qwen2"
    for key, value in {
        "context_length": 512,
        "embedding_length": 64,
        "block_count": 2,
        "feed_forward_length": 160,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "rope.freq_base": 1e6,
        "rope.dimension_count": 16,
        "attention.layer_norm_rms_epsilon": pytest.approx(1e-6),
    }.items():
        assert fields[f"qwen2.{key}"].contents() == value, key


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"qk_norm": "layer", "post_attention_norm": "rms"}, "folded"),
        ({"architecture": "gpt_neox"}, "architecture"),
        ({"mlp": "gelu_new"}, "mlp"),
        ({"residual": "parallel"}, "residual"),
        ({"qkv_bias": False}, "biases"),
        ({"mlp_bias": True}, "biases"),
        ({"head_dim": 32}, "head_dim"),
        ({"rope_sections": (2, 3, 3)}, "three axes"),
        ({"architecture": "qwen2vl"}, "three axes"),
    ],
)
def test_what_llama_cpp_would_compute_wrongly_is_refused(
    files: dict[str, Path], tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    model = make_model(QWEN2, files)
    refused = replace(model, spec=replace(model.spec, decoder=replace(QWEN2, **change)))
    assert reason in (supports(refused.spec, "q4_0") or "")
    with pytest.raises(UnsupportedError, match=reason):
        export(refused, tmp_path, gguf_type="q4_0", progress=lambda *_: None)
    assert not list(tmp_path.iterdir())


def test_tinygptv_is_refused_and_plain_phi2_is_not(files: dict[str, Path]) -> None:
    phi = make_model(PHI2, files).spec
    assert supports(phi, "q4_0") is None
    assert "norm" in str(supports(replace(phi, decoder=replace(PHI2, qk_norm="layer")), "q4_0"))


@pytest.mark.parametrize(("value", "reason"), [(float("nan"), "finite"), (1e6, "float16")])
def test_weight_that_cannot_be_stored_is_named(
    files: dict[str, Path], tmp_path: Path, value: float, reason: str
) -> None:
    model = make_model(QWEN2, files)
    model.decoder.layers[1].mlp.up_proj.weight[3, 5] = value
    with pytest.raises(CheckpointError, match=reason) as caught:
        export(model, tmp_path, gguf_type="q4_0", progress=lambda *_: None)
    assert caught.value.where == "layers.1.mlp.up_proj.weight"
    assert not list(tmp_path.iterdir()), "the temporary float16 file must not stay"


def test_quantizing_garbage_is_an_error_of_ours(tmp_path: Path) -> None:
    garbage = tmp_path / "garbage.gguf"
    garbage.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(EdgeVLMError) as caught:
        quantize_gguf(garbage, tmp_path / "out.gguf", QuantizeChoice(2, 2), threads=1, progress=lambda *_: None)
    assert isinstance(caught.value, EngineError)


def test_full_disk_is_said_when_quantizing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "garbage.gguf").write_bytes(b"GGUF" + bytes(100))
    monkeypatch.setattr("shutil.disk_usage", lambda _folder: type("Usage", (), {"free": 0}))
    with pytest.raises(InputError, match="disk is full"):
        quantize_gguf(
            tmp_path / "garbage.gguf",
            tmp_path / "out.gguf",
            QuantizeChoice(2, 2),
            threads=1,
            progress=lambda *_: None,
        )
