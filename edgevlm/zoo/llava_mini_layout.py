"""LLaVA-Mini's published checkpoint layout, written: the CLIP in a folder beside, where `mm_vision_tower` names it.

In: the sizes of a nano LLaVA-Mini and the weights it was trained to. Out: `model.safetensors`, `config.json` (model
type `llava_mini_llama`), `preprocessor_config.json`, the tokenizer, and `clip/`, a whole `CLIPModel` with both towers.
"""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from edgevlm.atomic import write_text
from edgevlm.spec import CompressedVitSpec
from edgevlm.zoo.layout import save_tensors
from edgevlm.zoo.llava_layout import clip_config, image_processor, published_name
from edgevlm.zoo.nano import NanoSpec
from edgevlm.zoo.tokenizer import IMAGE_TOKEN, save_tokenizer, token_id

_TOWER = "clip"
_END = "<|im_end|>"
_PREFIXES = {"projector": "model.mm_projector.", "fusion": "model.prefusion_", "decoder": "model."}


def write_llava_mini(folder: Path, spec: NanoSpec, weights: dict[str, Tensor], tokenizer: Tokenizer) -> None:
    """Write the whole checkpoint but its card; `weights` is a state dict of `NanoVLM` less the auxiliary heads."""
    assert isinstance(spec.encoder, CompressedVitSpec)
    assert spec.text is not None
    model: dict[str, Tensor] = {}
    clip: dict[str, Tensor] = {}
    for name, value in weights.items():
        part, rest = name.split(".", 1)
        if part in ("vision", "text"):
            clip[published_name(name).replace("vision_tower.", "vision_model.")] = value
        elif part != "compressor":
            model[_PREFIXES[part] + rest] = value
    model |= _compressor({k.removeprefix("compressor."): v for k, v in weights.items() if k.startswith("compressor.")})
    save_tensors(model, folder / "model.safetensors")
    (folder / _TOWER).mkdir()
    save_tensors(clip, folder / _TOWER / "model.safetensors")
    end, image = token_id(tokenizer, _END), token_id(tokenizer, IMAGE_TOKEN)
    files = {
        "config.json": _config(spec, end, image),
        "generation_config.json": {"do_sample": False, "eos_token_id": end},
        "preprocessor_config.json": image_processor(spec),
        f"{_TOWER}/config.json": clip_config(spec, spec.encoder.vit, spec.text, end),
    }
    for name, content in files.items():
        write_text(folder / name, json.dumps(content, indent=2) + "\n")
    save_tokenizer(tokenizer, folder, spec.decoder.max_position_embeddings)


def _compressor(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Queries, keys and values joined, one below the other, as torch's `MultiheadAttention` stores them."""
    joined = {
        f"attn.in_proj_{kind}": torch.cat([weights[f"{part}_proj.{kind}"] for part in "qkv"])
        for kind in ("weight", "bias")
    }
    joined |= {f"attn.out_proj.{kind}": weights[f"out_proj.{kind}"] for kind in ("weight", "bias")}
    joined |= {name: value for name, value in weights.items() if "_proj." not in name}
    return {f"model.compressor.{name}": value for name, value in joined.items()}


def _config(spec: NanoSpec, end: int, image: int) -> dict[str, Any]:
    assert isinstance(spec.encoder, CompressedVitSpec)
    assert spec.fusion is not None
    decoder = spec.decoder
    return {
        "architectures": ["LlavaMiniLlamaForCausalLM"],
        "attention_bias": decoder.qkv_bias,
        "compressor_size": spec.encoder.query_grid,
        "eos_token_id": end,
        "head_dim": decoder.head_dim,
        "hidden_act": "silu",
        "hidden_size": decoder.hidden_size,
        "image_aspect_ratio": "square",
        "image_token_index": image,
        "intermediate_size": decoder.intermediate_size,
        "max_position_embeddings": decoder.max_position_embeddings,
        "mm_hidden_size": spec.encoder.output_size,
        "mm_patch_merge_type": "flat",
        "mm_projector_type": "mlp2x_gelu",
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": _TOWER,
        "model_type": "llava_mini_llama",
        "num_attention_heads": decoder.num_attention_heads,
        "num_hidden_layers": decoder.num_hidden_layers,
        "num_key_value_heads": decoder.num_key_value_heads,
        "prefusion_layer_num": spec.fusion.num_hidden_layers,
        "resolution_ratio": spec.encoder.split,
        "rms_norm_eps": decoder.norm_eps,
        "rope_theta": decoder.rope_theta,
        "tie_word_embeddings": decoder.tied_embeddings,
        "torch_dtype": "float16",
        "vocab_size": decoder.vocab_size,
    }
