"""TinyGPT-V's four published sources, written from trained weights.

In: the sizes of a nano TinyGPT-V and the weights it was trained to. Out: `eva_vit_g.pth`; the norm and the Q-Former in
`blip2_pretrained_flant5xxl.pth`; `phi-2/` in the current layout with the tokenizer; the norms of the patched Phi-2 and
the two projections in `stage4.pth`; and `edgevlm-sources.yaml`. There is no LoRA beside weights trained as they are.
"""

import json
import math
from pathlib import Path
from typing import Any

import torch
import yaml
from tokenizers import Tokenizer
from torch import Tensor

from edgevlm.atomic import write_text
from edgevlm.models.tinygptv_sources import SOURCES_FILE
from edgevlm.spec import DecoderSpec, QFormerSpec, VitSpec
from edgevlm.zoo.layout import save_tensors
from edgevlm.zoo.nano import NanoSpec
from edgevlm.zoo.tokenizer import save_tokenizer, token_id

_VISION, _QFORMER, _PHI, _STAGE = "eva_vit_g.pth", "blip2_pretrained_flant5xxl.pth", "phi-2", "stage4.pth"
_WRAPPED = "llama_model.base_model.model."
_BLOCK = {"norm1": "norm1", "norm2": "norm2", "attention.out_proj": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}
_BERT = {
    "self_attention.q_proj": "attention.self.query",
    "self_attention.k_proj": "attention.self.key",
    "self_attention.v_proj": "attention.self.value",
    "self_attention.out_proj": "attention.output.dense",
    "self_attention.norm": "attention.output.LayerNorm",
    "cross_attention.q_proj": "crossattention.self.query",
    "cross_attention.k_proj": "crossattention.self.key",
    "cross_attention.v_proj": "crossattention.self.value",
    "cross_attention.out_proj": "crossattention.output.dense",
    "cross_attention.norm": "crossattention.output.LayerNorm",
    "fc1": "intermediate_query.dense",
    "fc2": "output_query.dense",
    "norm": "output_query.LayerNorm",
}
_STAGE_NORMS = {
    "self_attn.q_norm": "self_attn.q_layernorm",
    "self_attn.k_norm": "self_attn.k_layernorm",
    "attention_branch_norm": "post_layernorm",
}


def write_tinygptv(folder: Path, spec: NanoSpec, weights: dict[str, Tensor], tokenizer: Tokenizer) -> None:
    """Write the whole checkpoint but its card; `weights` is a state dict of `NanoVLM` less the auxiliary heads."""
    assert isinstance(spec.encoder, VitSpec)
    assert spec.queries is not None
    parts = {
        part: {name.removeprefix(f"{part}."): value for name, value in weights.items() if name.startswith(f"{part}.")}
        for part in ("vision", "projector", "decoder")
    }
    phi, norms = _language_model(parts["decoder"])
    torch.save(_encoder(parts["vision"], spec.encoder), folder / _VISION)
    torch.save({"model": _qformer(parts["projector"])}, folder / _QFORMER)
    torch.save({"model": norms | _projections(parts["projector"])}, folder / _STAGE)
    (folder / _PHI).mkdir()
    save_tensors(phi, folder / _PHI / "model.safetensors")
    config = _config(spec.decoder, token_id(tokenizer, spec.prompt.end))
    write_text(folder / _PHI / "config.json", json.dumps(config, indent=2) + "\n")
    save_tokenizer(tokenizer, folder / _PHI, spec.decoder.max_position_embeddings)
    write_text(folder / SOURCES_FILE, yaml.safe_dump(_sources(spec, spec.encoder, spec.queries), sort_keys=False))


def _stem(name: str) -> tuple[str, str, str]:
    """`layers.3.norm1.weight` as (`3`, `norm1`, `weight`)."""
    _, index, rest = name.split(".", 2)
    stem, _, kind = rest.rpartition(".")
    return index, stem, kind


def _encoder(weights: dict[str, Tensor], spec: VitSpec) -> dict[str, Tensor]:
    """Queries, keys and values in one matrix; the keys' bias, which changes no attention, is left out."""
    tensors = {
        "cls_token": weights["class_token"][None, None],
        "pos_embed": weights["positions"][None],
        "patch_embed.proj.weight": weights["patch.weight"],
        "patch_embed.proj.bias": weights["patch.bias"],
    }
    for name, value in weights.items():
        if name.startswith("layers.") and _stem(name)[1] in _BLOCK:
            index, stem, kind = _stem(name)
            tensors[f"blocks.{index}.{_BLOCK[stem]}.{kind}"] = value
    for block in range(spec.num_hidden_layers):
        ours, published = f"layers.{block}.attention.", f"blocks.{block}.attn."
        tensors[f"{published}qkv.weight"] = torch.cat([weights[f"{ours}{part}_proj.weight"] for part in "qkv"])
        tensors |= {f"{published}{part}_bias": weights[f"{ours}{part}_proj.bias"] for part in "qv"}
    return {name: value.clone() for name, value in tensors.items()}


def _qformer(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    tensors = {"query_tokens": weights["queries"][None].clone()}
    for name, value in weights.items():
        if name.startswith("layers."):
            index, stem, kind = _stem(name)
            tensors[f"Qformer.bert.encoder.layer.{index}.{_BERT[stem]}.{kind}"] = value.clone()
        elif name.startswith("feature_norm."):
            tensors[name.replace("feature_norm", "ln_vision")] = value.clone()
        elif name.startswith("query_norm."):
            tensors[name.replace("query_norm", "Qformer.bert.embeddings.LayerNorm")] = value.clone()
    return tensors


def _projections(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The trained layer as the second of the two; the first hands on what it gets."""
    weight, bias = weights["linear.weight"], weights["linear.bias"]
    return {
        "llama_proj.weight": torch.eye(weight.shape[1], dtype=weight.dtype),
        "llama_proj.bias": torch.zeros(weight.shape[1], dtype=weight.dtype),
        "llama_proj2.weight": weight.clone(),
        "llama_proj2.bias": bias.clone(),
    }


def _language_model(weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Plain Phi-2, and the norms that TinyGPT-V adds to it."""
    phi: dict[str, Tensor] = {}
    norms: dict[str, Tensor] = {}
    for name, value in weights.items():
        if name.startswith("layers."):
            index, stem, kind = _stem(name)
            if stem in _STAGE_NORMS:
                norms[f"{_WRAPPED}model.layers.{index}.{_STAGE_NORMS[stem]}.{kind}"] = value.clone()
            else:
                phi[f"model.layers.{index}.{stem.replace('o_proj', 'dense')}.{kind}"] = value
        elif name.startswith("norm."):
            phi[name.replace("norm.", "model.final_layernorm.", 1)] = value
        else:
            phi[name if name.startswith("lm_head.") else f"model.{name}"] = value
    return phi, norms


def _config(decoder: DecoderSpec, end: int) -> dict[str, Any]:
    """Phi-2's `config.json`."""
    return {
        "architectures": ["PhiForCausalLM"],
        "bos_token_id": end,
        "eos_token_id": end,
        "hidden_act": "gelu_new",
        "hidden_size": decoder.hidden_size,
        "intermediate_size": decoder.intermediate_size,
        "layer_norm_eps": decoder.norm_eps,
        "max_position_embeddings": decoder.max_position_embeddings,
        "model_type": "phi",
        "num_attention_heads": decoder.num_attention_heads,
        "num_hidden_layers": decoder.num_hidden_layers,
        "num_key_value_heads": decoder.num_key_value_heads,
        "partial_rotary_factor": decoder.rotary_dim / decoder.head_dim,
        "qk_layernorm": False,
        "rope_theta": decoder.rope_theta,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "vocab_size": decoder.vocab_size,
    }


def _sources(spec: NanoSpec, encoder: VitSpec, queries: QFormerSpec) -> dict[str, str | int]:
    assert math.prod(spec.regions) == queries.num_queries
    return {
        "vision": _VISION,
        "qformer": _QFORMER,
        "language_model": _PHI,
        "stage": _STAGE,
        "image_size": spec.image_size,
        "vision_layers": encoder.num_hidden_layers,
        "vision_heads": encoder.num_attention_heads,
        "qformer_heads": queries.num_attention_heads,
    }
