"""The LLaVA class in published sizes with random weights, in transformers' layout; of `edgevlm zoo synth`.

LLaVA-1.5-7B, LLaVA-OneVision-0.5B, SmolVLM-256M and -500M, InternVL3-1B. In: a folder and a name. Out:
`model.safetensors` (bfloat16, every published tensor but the redundant head of tied models, layers that the model does
not use included), configuration and processor files, and a tokenizer whose special tokens have ids of their own above
the text's. A tensor's moments follow from its role, so that activations neither vanish nor explode.
"""

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from edgevlm.atomic import write_text
from edgevlm.errors import InputError
from edgevlm.models.decoder import Decoder
from edgevlm.models.projector import build_projector
from edgevlm.models.vlm import VisionModel, build_encoder
from edgevlm.progress import Report
from edgevlm.spec import DecoderSpec, LinearProjectorSpec, MlpProjectorSpec, VisionSpec, VitSpec
from edgevlm.zoo.random_weights import write_random
from edgevlm.zoo.synth import padded_tokenizer
from edgevlm.zoo.tokenizer import ROWS, SPECIAL_TOKENS

Kind = Literal["llava", "llava_onevision", "smolvlm", "internvl"]

# E[gelu(x)^2] of a unit normal x is 0.425: what follows a GELU needs this much more variance.
_AFTER_GELU = 1 / 0.425
# Second moment of an embedding row's elements, as in the other synthetic checkpoints.
_ROW_LEVEL = 1 / 16

_CLIP_MEAN, _CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
_TINY_START = ROWS - len(SPECIAL_TOKENS)
_PINPOINTS = [[384 * rows, 384 * columns] for rows in range(1, 7) for columns in range(1, 7)]


@dataclass(frozen=True)
class LlavaSynth:
    """Sizes of one checkpoint; `special_start` is the id of the first special token."""

    kind: Kind
    vision: VisionSpec
    decoder: DecoderSpec
    special_start: int


def _clip(side: int, patch: int, width: int, layers: int, heads: int) -> VitSpec:
    return VitSpec(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        patch_size=patch,
        grid=side // patch,
        norm_eps=1e-5,
        activation="quick_gelu",
        class_token=True,
        patch_bias=False,
        pre_norm=True,
        post_norm=True,
    )


def _siglip(side: int, patch: int, width: int, intermediate: int, layers: int, heads: int) -> VitSpec:
    return VitSpec(
        hidden_size=width,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        patch_size=patch,
        grid=side // patch,
        norm_eps=1e-6,
        activation="gelu_tanh",
        post_norm=True,
    )


def _intern_vit(side: int, patch: int, width: int, layers: int, heads: int) -> VitSpec:
    return VitSpec(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        patch_size=patch,
        grid=side // patch,
        norm_eps=1e-6,
        class_token=True,
        layer_scale=True,
    )


def _decoder(
    architecture: str,
    rows: int,
    hidden: int,
    intermediate: int,
    layers: int,
    heads: int,
    kv_heads: int,
    *,
    theta: float,
    tied: bool,
    context: int,
) -> DecoderSpec:
    return DecoderSpec(
        architecture=architecture,
        vocab_size=rows,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=hidden // heads,
        rotary_dim=hidden // heads,
        rope_theta=theta,
        norm_eps=1e-5 if architecture == "llama" else 1e-6,
        max_position_embeddings=context,
        qkv_bias=architecture == "qwen2",
        tied_embeddings=tied,
    )


_VICUNA = _decoder("llama", 32064, 4096, 11008, 32, 32, 32, theta=1e4, tied=False, context=4096)
_QWEN2 = _decoder("qwen2", 152000, 896, 4864, 24, 14, 2, theta=1e6, tied=True, context=32768)
_SMOL_TOWER = _siglip(512, 16, 768, 3072, 12, 12)
SPECS = {
    "llava-1.5-7b": LlavaSynth(
        "llava", VisionSpec(_clip(336, 14, 1024, 24, 16), MlpProjectorSpec(4096), 336, 576), _VICUNA, 32000
    ),
    "llava-onevision-0.5b": LlavaSynth(
        "llava_onevision",
        VisionSpec(_siglip(384, 14, 1152, 4304, 27, 16), MlpProjectorSpec(896), 384, 729),
        _QWEN2,
        151643,
    ),
    "smolvlm-256m": LlavaSynth(
        "smolvlm",
        VisionSpec(_SMOL_TOWER, LinearProjectorSpec(bias=False), 512, 64, pixel_shuffle=4),
        _decoder("llama", 49280, 576, 1536, 30, 9, 3, theta=1e5, tied=True, context=8192),
        49152,
    ),
    "smolvlm-500m": LlavaSynth(
        "smolvlm",
        VisionSpec(_SMOL_TOWER, LinearProjectorSpec(bias=False), 512, 64, pixel_shuffle=4),
        _decoder("llama", 49280, 960, 2560, 32, 15, 5, theta=1e5, tied=True, context=8192),
        49152,
    ),
    "internvl3-1b": LlavaSynth(
        "internvl",
        VisionSpec(
            _intern_vit(448, 14, 1024, 24, 16), MlpProjectorSpec(896, input_norm=True), 448, 256, pixel_shuffle=2
        ),
        replace(_QWEN2, vocab_size=151674),
        151643,
    ),
}
_TINY_ENCODERS = {
    "llava": _clip(56, 14, 64, 2, 4),
    "llava_onevision": _siglip(56, 14, 64, 96, 2, 4),
    "smolvlm": _siglip(64, 16, 64, 96, 2, 4),
    "internvl": _intern_vit(56, 14, 64, 2, 4),
}

#: The IR's names as published ones: of a tower's part, then of a part of a layer.
_CLIP_NAMES = {
    "class_token": "embeddings.class_embedding",
    "positions": "embeddings.position_embedding.weight",
    "patch": "embeddings.patch_embedding",
    "pre_norm": "pre_layrnorm",
    "post_norm": "post_layernorm",
    "layer": "encoder.layers",
    "attention.q_proj": "self_attn.q_proj",
    "attention.k_proj": "self_attn.k_proj",
    "attention.v_proj": "self_attn.v_proj",
    "attention.out_proj": "self_attn.out_proj",
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
}
_INTERN_NAMES = {
    "class_token": "embeddings.cls_token",
    "positions": "embeddings.position_embeddings",
    "patch": "embeddings.patch_embeddings.projection",
    "layer": "encoder.layer",
    "attention.q_proj": "attention.q_proj",
    "attention.k_proj": "attention.k_proj",
    "attention.v_proj": "attention.v_proj",
    "attention.out_proj": "attention.projection_layer",
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
    "scale1": "lambda_1",
    "scale2": "lambda_2",
}
_PROJECTOR_NAMES = {"norm": "layer_norm", "linear_1": "linear_1", "linear_2": "linear_2"}


def write(folder: Path, name: str, *, tiny: bool, seed: int, resolution: int | None, report: Report | None) -> None:
    """Write everything but the model card into `folder`.

    Args:
        folder: exists.
        name: one of `SPECS`.
        tiny: the same layout with small sizes.
        seed: of the weights.
        resolution: only the published one, since these towers have a table of positions.
        report: called with (bytes written, bytes in all, tensor name) after each tensor.

    Raises:
        InputError: another resolution.
    """
    spec = _tiny(SPECS[name]) if tiny else SPECS[name]
    if resolution not in (None, spec.vision.image_size):
        raise InputError(
            f"{name} is published for {spec.vision.image_size} pixels", "zoo synth", "leave --resolution out"
        )
    ids = special_ids(spec)
    for file, content in configuration(spec, ids).items():
        write_text(folder / file, json.dumps(content, indent=2) + "\n")
    write_text(folder / "tokenizer.json", special_tokenizer(ids))
    roles = layout(spec)
    shapes = {published: shape for published, (_, shape) in roles.items()}
    with (folder / "model.safetensors").open("wb") as weights:
        write_random(weights, shapes, lambda tensor, shape: moments(roles[tensor][0], shape, spec), seed, report)


def _tiny(spec: LlavaSynth) -> LlavaSynth:
    encoder = _TINY_ENCODERS[spec.kind]
    projector = spec.vision.projector
    if isinstance(projector, MlpProjectorSpec):
        projector = replace(projector, hidden_size=128)
    shuffle = spec.vision.pixel_shuffle
    vision = VisionSpec(
        encoder, projector, encoder.grid * encoder.patch_size, (encoder.grid // shuffle) ** 2, pixel_shuffle=shuffle
    )
    decoder = replace(
        spec.decoder,
        vocab_size=ROWS + len(_special_tokens(spec.kind)),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        rotary_dim=32,
        max_position_embeddings=2048,
    )
    return LlavaSynth(spec.kind, vision, decoder, _TINY_START)


def layout(spec: LlavaSynth) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The IR's name and the shape of each tensor by its published name, in file order."""
    with torch.device("meta"):
        projector = build_projector(spec.vision, spec.decoder.hidden_size)
        vision = VisionModel(build_encoder(spec.vision.encoder), projector)
        decoder = Decoder(spec.decoder)
    found: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name, value in vision.state_dict().items():
        published = _vision_name(name, spec.kind)
        shape = tuple(value.shape)
        if spec.kind == "internvl" and name.endswith(("class_token", "positions")):
            shape = (1,) * (3 - len(shape)) + shape
        found[published] = (f"vision.{name}", shape)
    prefix = "model.text_model." if spec.kind == "smolvlm" else "model.language_model."
    for name, value in decoder.state_dict().items():
        published = name if name.startswith("lm_head.") else prefix + name
        found[published] = (f"decoder.{name}", tuple(value.shape))
    if spec.kind == "llava_onevision":
        found["model.image_newline"] = ("image_newline", (spec.decoder.hidden_size,))
    return found


def _vision_name(name: str, kind: Kind) -> str:
    part, _, rest = name.partition(".")
    if part == "projector":
        if kind == "smolvlm":
            return "model.connector.modality_projection.proj.weight"
        stem, _, leaf = rest.partition(".")
        return f"model.multi_modal_projector.{_PROJECTOR_NAMES[stem]}.{leaf}"
    names = _INTERN_NAMES if kind == "internvl" else _CLIP_NAMES
    prefix = "model.vision_model." if kind == "smolvlm" else "model.vision_tower."
    if match := re.fullmatch(r"layers\.(\d+)\.(.+)", rest):
        return f"{prefix}{names['layer']}.{match[1]}.{_renamed(match[2], names)}"
    return prefix + _renamed(rest, names)


def _renamed(name: str, names: dict[str, str]) -> str:
    if name in names:
        return names[name]
    stem, _, leaf = name.rpartition(".")
    return f"{names[stem]}.{leaf}"


def moments(name: str, shape: tuple[int, ...], spec: LlavaSynth) -> tuple[float, float]:
    """Mean and standard deviation of a tensor (IR name) that keep activations near one second moment throughout."""
    encoder = spec.vision.encoder
    assert isinstance(encoder, VitSpec)
    if re.search(r"norm\d?\.weight$|layernorm\.weight$", name):
        return 1.0, 0.02
    if name.endswith(("scale1", "scale2")):
        return 0.2, 0.01
    if name.endswith("bias"):
        return 0.0, 0.01
    if name.endswith(("embed_tokens.weight", "lm_head.weight", "image_newline")):
        return 0.0, math.sqrt(_ROW_LEVEL)
    if name.endswith(("positions", "class_token")):
        return 0.0, 0.3
    gain = 1.0
    if name.startswith("vision.encoder.layers") and name.endswith(("out_proj.weight", "fc2.weight")):
        gain = (_AFTER_GELU if "fc2" in name else 1.0) / (2 * encoder.num_hidden_layers)
    elif name.endswith(("projector.linear_2.weight", "projector.linear.weight")):
        gain = (_AFTER_GELU if "linear_2" in name else 1.0) * _ROW_LEVEL
    elif name.endswith(("o_proj.weight", "down_proj.weight")):
        gain = _ROW_LEVEL / (2 * spec.decoder.num_hidden_layers)
    return 0.0, math.sqrt(gain / math.prod(shape[1:]))


def _special_tokens(kind: Kind) -> tuple[str, ...]:
    if kind == "llava":
        return ("<image>", "<pad>", "<s>", "</s>")
    if kind == "smolvlm":
        rows = tuple(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7))
        framing = ("<|im_start|>", "<fake_token_around_image>", "<image>", "<global-img>", "<end_of_utterance>")
        return ("<|endoftext|>", *framing, *rows)
    images = ("<image>",) if kind == "llava_onevision" else ("<img>", "</img>", "<IMG_CONTEXT>")
    return ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *images)


def special_ids(spec: LlavaSynth) -> dict[str, int]:
    """Id by special token."""
    return {token: spec.special_start + index for index, token in enumerate(_special_tokens(spec.kind))}


def special_tokenizer(ids: dict[str, int]) -> str:
    """The zoo's tokenizer with a family's special tokens, at their ids."""
    content = json.loads(padded_tokenizer(min(ids.values())).to_str())
    sample = content["added_tokens"][0]
    content["added_tokens"] = [{**sample, "content": token, "id": index} for token, index in ids.items()]
    return json.dumps(content)


def configuration(spec: LlavaSynth, ids: dict[str, int]) -> dict[str, dict[str, Any]]:
    """The JSON files, with the fields of the published checkpoints."""
    describe: dict[Kind, Callable[[LlavaSynth, dict[str, int]], tuple[dict[str, Any], dict[str, Any]]]] = {
        "llava": _llava,
        "llava_onevision": _onevision,
        "smolvlm": _smolvlm,
        "internvl": _internvl,
    }
    stop = ids[{"llava": "</s>", "smolvlm": "<end_of_utterance>"}.get(spec.kind, "<|im_end|>")]
    config, processor = describe[spec.kind](spec, ids)
    common = {"do_resize": True, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True}
    return {
        "config.json": {**config, "torch_dtype": "bfloat16", "tie_word_embeddings": spec.decoder.tied_embeddings},
        "generation_config.json": {"do_sample": False, "eos_token_id": stop},
        "preprocessor_config.json": {**common, **processor},
        "tokenizer_config.json": {"model_max_length": spec.decoder.max_position_embeddings},
    }


def _text(spec: LlavaSynth, stop: int) -> dict[str, Any]:
    decoder = spec.decoder
    return {
        "model_type": decoder.architecture,
        "vocab_size": decoder.vocab_size,
        "hidden_size": decoder.hidden_size,
        "intermediate_size": decoder.intermediate_size,
        "num_hidden_layers": decoder.num_hidden_layers,
        "num_attention_heads": decoder.num_attention_heads,
        "num_key_value_heads": decoder.num_key_value_heads,
        "head_dim": decoder.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": decoder.norm_eps,
        "rope_theta": decoder.rope_theta,
        "max_position_embeddings": decoder.max_position_embeddings,
        "eos_token_id": stop,
    }


def _tower(spec: LlavaSynth, kind: str) -> dict[str, Any]:
    encoder = spec.vision.encoder
    assert isinstance(encoder, VitSpec)
    return {
        "model_type": kind,
        "hidden_size": encoder.hidden_size,
        "intermediate_size": encoder.intermediate_size,
        "num_hidden_layers": encoder.num_hidden_layers,
        "num_attention_heads": encoder.num_attention_heads,
        "image_size": spec.vision.image_size,
        "patch_size": encoder.patch_size,
    }


def _llava(spec: LlavaSynth, ids: dict[str, int]) -> tuple[dict[str, Any], dict[str, Any]]:
    side = spec.vision.image_size
    config = {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "image_token_index": ids["<image>"],
        "projector_hidden_act": "gelu",
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "text_config": {**_text(spec, ids["</s>"]), "bos_token_id": ids["<s>"]},
        "vision_config": _tower(spec, "clip_vision_model"),
    }
    processor = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": side},
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
        "resample": 3,
        "image_mean": _CLIP_MEAN,
        "image_std": _CLIP_STD,
    }
    return config, processor


def _onevision(spec: LlavaSynth, ids: dict[str, int]) -> tuple[dict[str, Any], dict[str, Any]]:
    side = spec.vision.image_size
    pinpoints = [[side * rows // 384, side * columns // 384] for rows, columns in _PINPOINTS]
    config = {
        "architectures": ["LlavaOnevisionForConditionalGeneration"],
        "model_type": "llava_onevision",
        "image_token_index": ids["<image>"],
        "image_grid_pinpoints": pinpoints,
        "projector_hidden_act": "gelu",
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
        "vision_aspect_ratio": "anyres_max_9",
        "text_config": _text(spec, ids["<|im_end|>"]),
        "vision_config": {**_tower(spec, "siglip_vision_model"), "vision_use_head": False},
    }
    processor = {
        "image_processor_type": "LlavaOnevisionImageProcessor",
        "image_grid_pinpoints": pinpoints,
        "size": {"height": side, "width": side},
        "resample": 3,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    return config, processor


def _smolvlm(spec: LlavaSynth, ids: dict[str, int]) -> tuple[dict[str, Any], dict[str, Any]]:
    side = spec.vision.image_size
    config = {
        "architectures": ["Idefics3ForConditionalGeneration"],
        "model_type": "idefics3",
        "image_token_id": ids["<image>"],
        "scale_factor": spec.vision.pixel_shuffle,
        "text_config": _text(spec, ids["<end_of_utterance>"]),
        "vision_config": _tower(spec, "idefics3_vision"),
    }
    processor = {
        "image_processor_type": "Idefics3ImageProcessor",
        "do_image_splitting": True,
        "size": {"longest_edge": 4 * side},
        "max_image_size": {"longest_edge": side},
        "resample": 1,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    return config, processor


def _internvl(spec: LlavaSynth, ids: dict[str, int]) -> tuple[dict[str, Any], dict[str, Any]]:
    side, encoder = spec.vision.image_size, spec.vision.encoder
    tower = {
        **_tower(spec, "internvl_vision"),
        "image_size": [side, side],
        "patch_size": [encoder.stride, encoder.stride],
        "attention_bias": True,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
        "norm_type": "layer_norm",
        "use_qk_norm": False,
    }
    config = {
        "architectures": ["InternVLForConditionalGeneration"],
        "model_type": "internvl",
        "image_token_id": ids["<IMG_CONTEXT>"],
        "image_seq_length": spec.vision.image_tokens,
        "downsample_ratio": 1 / spec.vision.pixel_shuffle,
        "projector_hidden_act": "gelu",
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
        "text_config": _text(spec, ids["<|im_end|>"]),
        "vision_config": tower,
    }
    processor = {
        "image_processor_type": "GotOcr2ImageProcessor",
        "crop_to_patches": True,
        "min_patches": 1,
        "max_patches": 12,
        "size": {"height": side, "width": side},
        "resample": 3,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    }
    return config, processor
