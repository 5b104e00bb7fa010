"""Llama 3.1's scaled rotary frequencies: torch against transformers, the ONNX graph and llama.cpp against torch."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf_models import LLAMA, QWEN2, make_model, write_tokenizer
from onnx_models import SharedCache, write_decoder
from transformers import LlamaConfig, LlamaForCausalLM

from edgevlm.exporters.gguf.exporter import export
from edgevlm.exporters.gguf.layout import supports
from edgevlm.models.vlm import VlmModel
from edgevlm.runtimes.base import EngineOptions
from edgevlm.runtimes.llama_cpp import LlamaCppDecoder
from edgevlm.spec import ModelSpec, RopeScaling

#: Of the sixteen waves of a head of 32, at these numbers some stay, some are stretched in part, most whole.
SCALING = RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64)
SCALED = replace(LLAMA, rope_scaling=SCALING)
LENGTH = 60


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> VlmModel:
    """With query and key weights large enough for positions to decide the logits."""
    made = make_model(SCALED, write_tokenizer(tmp_path_factory.mktemp("tokenizer")))
    for layer in made.decoder.layers:
        attention: Any = layer.self_attn
        attention.q_proj.weight.mul_(4)
        attention.v_proj.weight.mul_(4)
    return made


def ids() -> torch.Tensor:
    return torch.randint(0, 1000, (1, LENGTH), generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def ours(model: VlmModel) -> torch.Tensor:
    logits, _ = model.decoder(model.decoder.embed_tokens(ids()), torch.arange(LENGTH)[None])
    return logits[0]  # type: ignore[no-any-return]


@torch.no_grad()
def test_torch_equals_transformers(model: VlmModel) -> None:
    numbers = {
        name: getattr(SCALED, name)
        for name in (
            *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
            *("num_key_value_heads", "head_dim", "max_position_embeddings"),
        )
    }
    rope = {
        "rope_type": "llama3",
        "rope_theta": SCALED.rope_theta,
        "factor": SCALING.factor,
        "low_freq_factor": SCALING.low_freq_factor,
        "high_freq_factor": SCALING.high_freq_factor,
        "original_max_position_embeddings": SCALING.original_max_position_embeddings,
    }
    config = LlamaConfig(**numbers, rms_norm_eps=SCALED.norm_eps, rope_parameters=rope, tie_word_embeddings=False)
    reference = LlamaForCausalLM(config).eval()
    state = model.decoder.state_dict()
    renamed = {name if name.startswith("lm_head") else f"model.{name}": value for name, value in state.items()}
    reference.load_state_dict(renamed)
    torch.testing.assert_close(ours(model), reference(ids()).logits[0], atol=1e-4, rtol=1e-4)

    plain = replace(model, decoder=type(model.decoder)(LLAMA))
    plain.decoder.load_state_dict(state)
    assert (ours(plain) - ours(model)).abs().max() > 0.1, "the scaling makes no difference here"


def test_onnx_equals_torch(model: VlmModel, tmp_path: Path) -> None:
    cache = SharedCache(write_decoder(model.decoder, tmp_path, "fp32"), SCALED)
    with torch.no_grad():
        found = cache(model.decoder.embed_tokens(ids()))
    np.testing.assert_allclose(found[0], ours(model).numpy(), atol=1e-4)


def test_llama_cpp_equals_torch(model: VlmModel, tmp_path: Path) -> None:
    export(model, tmp_path, gguf_type="f32", progress=lambda *_: None)
    path = tmp_path / "model-f32.gguf"
    factors = {tensor.name: tensor.data for tensor in gguf.GGUFReader(path).tensors}["rope_freqs.weight"]
    assert factors[0] == 1
    assert factors[-1] == SCALING.factor
    engine = LlamaCppDecoder(path, SCALED, EngineOptions(threads=1))
    logits = engine.prefill([ids()[0].numpy().astype(np.int32)])
    expected = ours(model)[-1].numpy()
    np.testing.assert_allclose(logits, expected, atol=2e-2)
    assert np.corrcoef(logits, expected)[0, 1] > 0.9999
    engine.close()


def test_an_architecture_whose_graph_has_no_factors_is_refused(model: VlmModel) -> None:
    spec: ModelSpec = replace(model.spec, decoder=replace(QWEN2, rope_scaling=SCALING))
    assert "does not scale" in str(supports(spec, "f32"))
    assert ModelSpec.from_dict(model.spec.to_dict()) == model.spec
