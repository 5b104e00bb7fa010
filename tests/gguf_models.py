"""Tiny seeded models for the tests of GGUF and llama.cpp, with a byte-level BPE tokenizer of Qwen2's form."""

from dataclasses import replace
from pathlib import Path

import decoders
import torch

from edgevlm.models.decoder import Decoder
from edgevlm.models.vlm import VlmModel, build_vision
from edgevlm.spec import DecoderSpec, FastViTHDSpec, MlpProjectorSpec, ModelSpec, PreprocessSpec, PromptSpec, VisionSpec
from edgevlm.zoo.tokenizer import CHAT_TEMPLATE, build_tokenizer, save_tokenizer

ROWS = 1040
QWEN2 = replace(decoders.QWEN2, vocab_size=ROWS, intermediate_size=160, rope_theta=1e6, max_position_embeddings=512)
LLAMA = replace(
    QWEN2, architecture="llama", qkv_bias=False, tied_embeddings=False, rope_theta=1e4, head_dim=32, rotary_dim=32
)
PHI2 = replace(
    decoders.PHI2,
    vocab_size=ROWS,
    intermediate_size=160,
    num_attention_heads=4,
    num_key_value_heads=4,
    head_dim=16,
    rotary_dim=8,
    max_position_embeddings=512,
)


def write_tokenizer(folder: Path) -> dict[str, Path]:
    """The zoo's tokenizer (1024 tokens) as checkpoint files."""
    save_tokenizer(build_tokenizer(1024), folder, 512)
    return {path.name: path for path in folder.iterdir()}


def make_model(decoder: DecoderSpec, tokenizer_files: dict[str, Path], seed: int = 0) -> VlmModel:
    """A VLM whose decoder has random float16-exact weights; its vision module holds no memory."""
    encoder = FastViTHDSpec(depths=(1, 1, 1, 1, 1), dims=(16, 16, 16, 32, 32), head_dim=16, squeeze_channels=8)
    spec = ModelSpec(
        family="fastvlm",
        name="tiny",
        vision=VisionSpec(encoder, MlpProjectorSpec(64), 128, 4),
        decoder=decoder,
        preprocess=PreprocessSpec(128),
        prompt=PromptSpec(CHAT_TEMPLATE, stop_token_ids=(1022,), image_token_id=1023),
        model_type="llava_qwen2",
        model_class="LlavaQwen2ForCausalLM",
    )
    generator = torch.Generator().manual_seed(seed)
    module = Decoder(decoder).eval().requires_grad_(False)
    for name, parameter in module.named_parameters():
        values = torch.randn(parameter.shape, generator=generator)
        scale = 0.5 * parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 0.1
        offset = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        parameter.copy_((values * scale + offset).half().float())
    with torch.device("meta"):
        vision = build_vision(spec)
    return VlmModel(spec, vision, module, tokenizer_files, ())
