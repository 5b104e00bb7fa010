"""LLaVA-1.5's checkpoint layout as transformers writes it, and the text tower of the CLIP that its encoder comes from.

In: the sizes of a nano LLaVA and the weights it was trained to. Out: `model.safetensors` (the whole vision tower, the
layer behind the features included), `config.json` (model type `llava`), the processor files, the tokenizer; beside them
`text_tower.safetensors` and `text_tower.json`, the rest of a `CLIPModel` under the names of its published checkpoints.
"""

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from torch import Tensor

from edgevlm.atomic import write_text
from edgevlm.spec import DecoderSpec, VitSpec
from edgevlm.zoo.clip import TextTowerSpec
from edgevlm.zoo.layout import save_tensors
from edgevlm.zoo.nano import NanoSpec
from edgevlm.zoo.tokenizer import IMAGE_TOKEN, save_tokenizer, token_id

_END = "<|im_end|>"
# ChatML as in the tokenizer's own template, for messages of text or of parts (transformers' processors).
_CHAT_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_LAYER_PARTS = {
    "attention.": "self_attn.",
    "norm1.": "layer_norm1.",
    "norm2.": "layer_norm2.",
    "fc1.": "mlp.fc1.",
    "fc2.": "mlp.fc2.",
}
_VISION = {
    "class_token": "embeddings.class_embedding",
    "patch.weight": "embeddings.patch_embedding.weight",
    "positions": "embeddings.position_embedding.weight",
    "pre_norm.": "pre_layrnorm.",
    "post_norm.": "post_layernorm.",
}
_TEXT = {
    "embed_tokens.": "text_model.embeddings.token_embedding.",
    "positions": "text_model.embeddings.position_embedding.weight",
    "post_norm.": "text_model.final_layer_norm.",
    "projection.": "text_projection.",
    "logit_scale": "logit_scale",
}
_BESIDE = ("text_model.", "text_projection.", "visual_projection.", "logit_scale")
_PROJECTOR = {"0.": "linear_1.", "2.": "linear_2."}


def write_llava(folder: Path, spec: NanoSpec, weights: dict[str, Tensor], tokenizer: Tokenizer) -> None:
    """Write the whole checkpoint but its card; `weights` is a state dict of `NanoVLM` less the auxiliary heads."""
    assert isinstance(spec.encoder, VitSpec)
    assert spec.text is not None
    model = {published_name(name): value for name, value in weights.items()}
    text = {name: model.pop(name) for name in list(model) if name.startswith(_BESIDE)}
    save_tensors(model, folder / "model.safetensors")
    save_tensors(text, folder / "text_tower.safetensors")
    end, image = token_id(tokenizer, _END), token_id(tokenizer, IMAGE_TOKEN)
    files = {
        "config.json": _config(spec, spec.encoder, end, image),
        "generation_config.json": {"do_sample": False, "eos_token_id": end},
        "preprocessor_config.json": image_processor(spec),
        "processor_config.json": {
            "image_token": IMAGE_TOKEN,
            "num_additional_image_tokens": 1,
            "patch_size": spec.encoder.patch_size,
            "processor_class": "LlavaProcessor",
            "vision_feature_select_strategy": "default",
        },
        "text_tower.json": clip_config(spec, spec.encoder, spec.text, end),
    }
    for name, content in files.items():
        write_text(folder / name, json.dumps(content, indent=2) + "\n")
    write_text(folder / "chat_template.jinja", _CHAT_TEMPLATE)
    save_tokenizer(tokenizer, folder, spec.decoder.max_position_embeddings)


def published_name(name: str) -> str:
    """The name in either file of one tensor of `NanoVLM`."""
    part, rest = name.split(".", 1)
    if part == "text":
        return _renamed(rest, _TEXT, "text_model.encoder.")
    if part == "vision":
        if rest.startswith("projection."):
            return f"visual_{rest}"
        return "vision_tower." + _renamed(rest.removeprefix("vit."), _VISION, "encoder.")
    if part == "projector":
        return "multi_modal_projector." + _renamed(rest, _PROJECTOR, "")
    return f"language_model.model.{rest}"


def _renamed(name: str, heads: dict[str, str], layers: str) -> str:
    """The published name of one tensor: a known beginning replaced, or within `layers` the parts of a layer renamed."""
    if name.startswith("layers."):
        _, index, rest = name.split(".", 2)
        return f"{layers}layers.{index}.{_renamed(rest, _LAYER_PARTS, '')}"
    old, new = next((old, new) for old, new in heads.items() if name.startswith(old))
    return new + name.removeprefix(old)


def _config(spec: NanoSpec, encoder: VitSpec, end: int, image: int) -> dict[str, Any]:
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "dtype": "float16",
        "eos_token_id": end,
        "image_seq_length": spec.grid**2,
        "image_token_index": image,
        "model_type": "llava",
        "multimodal_projector_bias": True,
        "projector_hidden_act": "gelu",
        "text_config": _text_config(spec.decoder, end),
        "tie_word_embeddings": spec.decoder.tied_embeddings,
        "vision_config": _vision_config(spec, encoder),
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
    }


def _text_config(decoder: DecoderSpec, end: int) -> dict[str, Any]:
    return {
        "attention_bias": decoder.qkv_bias,
        "bos_token_id": None,
        "eos_token_id": end,
        "head_dim": decoder.head_dim,
        "hidden_act": "silu",
        "hidden_size": decoder.hidden_size,
        "intermediate_size": decoder.intermediate_size,
        "max_position_embeddings": decoder.max_position_embeddings,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": decoder.num_attention_heads,
        "num_hidden_layers": decoder.num_hidden_layers,
        "num_key_value_heads": decoder.num_key_value_heads,
        "pad_token_id": None,
        "rms_norm_eps": decoder.norm_eps,
        "rope_parameters": {"rope_theta": decoder.rope_theta, "rope_type": "default"},
        "tie_word_embeddings": decoder.tied_embeddings,
        "vocab_size": decoder.vocab_size,
    }


def _vision_config(spec: NanoSpec, encoder: VitSpec) -> dict[str, Any]:
    """The whole tower: one layer more than the features need."""
    assert spec.text is not None
    return {
        "hidden_act": encoder.activation,
        "hidden_size": encoder.hidden_size,
        "image_size": spec.image_size,
        "intermediate_size": encoder.intermediate_size,
        "layer_norm_eps": encoder.norm_eps,
        "model_type": "clip_vision_model",
        "num_attention_heads": encoder.num_attention_heads,
        "num_channels": 3,
        "num_hidden_layers": encoder.num_hidden_layers + 1,
        "patch_size": encoder.patch_size,
        "projection_dim": spec.text.projection_size,
    }


def clip_config(spec: NanoSpec, encoder: VitSpec, text: TextTowerSpec, end: int) -> dict[str, Any]:
    """The configuration of a `CLIPModel` made of both towers."""
    tower = {
        "bos_token_id": None,
        "eos_token_id": end,
        "hidden_act": text.layer.activation,
        "hidden_size": text.hidden_size,
        "intermediate_size": text.layer.intermediate_size,
        "layer_norm_eps": text.layer.norm_eps,
        "max_position_embeddings": text.max_position_embeddings,
        "model_type": "clip_text_model",
        "num_attention_heads": text.num_attention_heads,
        "num_hidden_layers": text.num_hidden_layers,
        "pad_token_id": None,
        "projection_dim": text.projection_size,
        "vocab_size": text.vocab_size,
    }
    return {
        "architectures": ["CLIPModel"],
        "dtype": "float16",
        "model_type": "clip",
        "projection_dim": text.projection_size,
        "text_config": tower,
        "vision_config": _vision_config(spec, encoder),
    }


def image_processor(spec: NanoSpec) -> dict[str, Any]:
    """CLIP's image processor for square images of the model's size."""
    return {
        "crop_size": {"height": spec.image_size, "width": spec.image_size},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": list(spec.mean),
        "image_processor_type": "CLIPImageProcessor",
        "image_std": list(spec.std),
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"shortest_edge": spec.image_size},
    }
