"""CLIP's and SigLIP's vision towers (transformers' `clip_vision_model`, `siglip_vision_model`) as our one ViT.

In: the raw `vision_config`, which hidden state a model takes and whether with the class token. Out: a `VitSpec`, and
the tower's tensor names as the ViT's. What lies behind the features taken (later layers, `post_layernorm`, the pooling
head) is dropped.
"""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field

from edgevlm.errors import CheckpointError
from edgevlm.models.configs import PublishedConfig, require, validated
from edgevlm.spec import VitSpec

CLIP_TYPES = ("clip_vision_model", "clip")
SIGLIP_TYPES = ("siglip_vision_model", "siglip", "smolvlm_vision", "idefics3_vision")

#: What configurations call an activation, and the name here.
ACTIVATIONS: dict[str, Literal["gelu", "gelu_tanh", "quick_gelu"]] = {
    "gelu": "gelu",
    "quick_gelu": "quick_gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}

_PARTS = {
    "embeddings.patch_embedding": "patch",
    "pre_layrnorm": "pre_norm",
    "post_layernorm": "post_norm",
    "self_attn.q_proj": "attention.q_proj",
    "self_attn.k_proj": "attention.k_proj",
    "self_attn.v_proj": "attention.v_proj",
    "self_attn.out_proj": "attention.out_proj",
    "layer_norm1": "norm1",
    "layer_norm2": "norm2",
    "mlp.fc1": "fc1",
    "mlp.fc2": "fc2",
}


class _Clip(PublishedConfig):
    """Fields of a vision configuration; the defaults are CLIP's."""

    hidden_size: int = Field(default=768, gt=0, le=1 << 16)
    intermediate_size: int = Field(default=3072, gt=0, le=1 << 18)
    num_hidden_layers: int = Field(default=12, gt=0, le=512)
    num_attention_heads: int = Field(default=12, gt=0, le=1024)
    image_size: int = Field(default=224, gt=0, le=1 << 14)
    patch_size: int = Field(default=32, gt=0, le=1 << 10)
    hidden_act: Literal["gelu", "quick_gelu", "gelu_new", "gelu_pytorch_tanh"] = "quick_gelu"
    layer_norm_eps: float = Field(default=1e-5, gt=0, lt=1)


class _Siglip(_Clip):
    patch_size: int = Field(default=16, gt=0, le=1 << 10)
    hidden_act: Literal["gelu", "quick_gelu", "gelu_new", "gelu_pytorch_tanh"] = "gelu_pytorch_tanh"
    layer_norm_eps: float = Field(default=1e-6, gt=0, lt=1)


def read_vit(
    raw: dict[str, Any], where: str, *, feature_layer: int, class_token: bool = False, post_norm: bool = False
) -> VitSpec:
    """The numbers of a tower, of which a model takes one hidden state.

    Args:
        raw: the vision configuration; its `model_type` tells CLIP from SigLIP.
        where: the file, for messages.
        feature_layer: which hidden state is taken, as transformers counts them: 0 is the embeddings, -1 the last
            layer's output, -2 the one before.
        class_token: CLIP's class token stays among the features (select strategy `full`); SigLIP has none.
        post_norm: the features are the last hidden state, behind `post_layernorm`.

    Raises:
        CheckpointError: another kind of tower, a field that does not fit, or a layer that does not exist.
    """
    kind = raw.get("model_type")
    if kind not in CLIP_TYPES + SIGLIP_TYPES:
        raise CheckpointError(
            f"vision model type {kind!r:.60} is not supported", where, "known: clip_vision_model, siglip_vision_model"
        )
    require(raw, "num_channels", (3,), where)
    is_clip = kind in CLIP_TYPES
    config = validated(_Clip if is_clip else _Siglip, raw, where)
    layers = config.num_hidden_layers + 1 + feature_layer if feature_layer < 0 else feature_layer
    if not 0 <= layers <= config.num_hidden_layers:
        raise CheckpointError(
            f"config.json: vision feature layer {feature_layer} of a tower of {config.num_hidden_layers} layers", where
        )
    if config.hidden_size % config.num_attention_heads or config.image_size < config.patch_size:
        raise CheckpointError("config.json: the vision tower's heads or patches do not fit its sizes", where)
    return VitSpec(
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=layers,
        num_attention_heads=config.num_attention_heads,
        patch_size=config.patch_size,
        grid=config.image_size // config.patch_size,
        norm_eps=config.layer_norm_eps,
        activation=ACTIVATIONS[config.hidden_act],
        class_token=is_clip,
        keep_class_token=is_clip and class_token,
        patch_bias=not is_clip,
        pre_norm=is_clip,
        post_norm=post_norm,
    )


def image_size(raw: dict[str, Any], where: str) -> int:
    """Pixels a side that the tower was trained for."""
    return validated(_Clip if raw.get("model_type") in CLIP_TYPES else _Siglip, raw, where).image_size


def vit_name(name: str, spec: VitSpec) -> str | None:
    """A tower's tensor name, with or without `vision_model.` before it, as the ViT's; None for what is dropped.

    Raises:
        CheckpointError: CLIP and SigLIP have no such tensor.
    """
    short = name.removeprefix("vision_model.")
    if short == "embeddings.class_embedding":
        return "class_token"
    if short == "embeddings.position_embedding.weight":
        return "positions"
    if short.endswith("embeddings.position_ids") or short.startswith("head."):
        return None
    match = re.fullmatch(r"(?:encoder\.layers\.(\d+)\.)?([a-z0-9_.]+)\.(weight|bias)", short)
    part = _PARTS.get(match[2]) if match else None
    if match is None or part is None:
        raise CheckpointError(f"unknown tensor {name}", "the vision tower", "is this a CLIP or SigLIP tower?")
    if match[1] is not None:
        layer = int(match[1])
        return f"layers.{layer}.{part}.{match[3]}" if layer < spec.num_hidden_layers else None
    if part == "post_norm" and not spec.post_norm:
        return None
    return f"{part}.{match[3]}"
