"""Configuration, processor and tokenizer files of the LLaVA class's synthetic checkpoints.

They have the fields and values of the published checkpoints.
"""

import json
from collections.abc import Callable
from typing import Any

from edgevlm.spec import VitSpec
from edgevlm.zoo.synth import padded_tokenizer
from edgevlm.zoo.synth_llava_sizes import Kind, LlavaSynth

_CLIP_MEAN, _CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
_PINPOINTS = [[384 * rows, 384 * columns] for rows in range(1, 7) for columns in range(1, 7)]


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
