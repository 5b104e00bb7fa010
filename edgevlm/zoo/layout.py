"""Apple's published checkpoint layout of FastVLM, written: tensors, the JSON files beside them, the tokenizer.

In: the sizes of a FastVLM and the weights it was trained to. Out: `model.safetensors`, `config.json` (model type
`llava_qwen2`), `generation_config.json`, `preprocessor_config.json` and the tokenizer files, with the fields and values
of the published checkpoints.
"""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from edgevlm.atomic import write_text
from edgevlm.spec import DecoderSpec, FastViTHDSpec
from edgevlm.zoo.nano import NanoSpec
from edgevlm.zoo.tokenizer import IMAGE_TOKEN, save_tokenizer, token_id

VISION_PREFIX = "model.vision_tower.vision_tower.model."


def write_fastvlm(folder: Path, spec: NanoSpec, weights: dict[str, Tensor], tokenizer: Tokenizer) -> None:
    """Write the whole checkpoint but its card; `weights` is a state dict of `NanoVLM` less the auxiliary heads."""
    assert isinstance(spec.encoder, FastViTHDSpec)
    save_tensors({apple_tensor_name(name): value for name, value in weights.items()}, folder / "model.safetensors")
    write_configuration(
        folder,
        spec.encoder,
        spec.decoder,
        spec.image_size,
        dtype="float16",
        stop_id=token_id(tokenizer, "<|im_end|>"),
        image_id=token_id(tokenizer, IMAGE_TOKEN),
    )
    save_tokenizer(tokenizer, folder, spec.decoder.max_position_embeddings)


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """One safetensors file that everybody may read."""
    save_file({name: value.contiguous() for name, value in tensors.items()}, path, metadata={"format": "pt"})
    path.chmod(0o644)


def apple_tensor_name(name: str) -> str:
    """`vision.*`, `projector.{0,2}.*` or `decoder.*` of a training module as published."""
    part, rest = name.split(".", 1)
    if part == "decoder" and rest.startswith("lm_head."):
        return rest
    return {"vision": VISION_PREFIX, "projector": "model.mm_projector.", "decoder": "model."}[part] + rest


def write_configuration(
    folder: Path,
    encoder: FastViTHDSpec,
    decoder: DecoderSpec,
    resolution: int,
    *,
    dtype: str,
    stop_id: int,
    image_id: int,
) -> None:
    """Write the three JSON files into `folder`. `dtype` is `float16` or `bfloat16`."""
    config: dict[str, Any] = {
        "architectures": ["LlavaQwen2ForCausalLM"],
        "attention_dropout": 0.0,
        "eos_token_id": stop_id,
        "hidden_act": "silu",
        "hidden_size": decoder.hidden_size,
        "image_aspect_ratio": "pad",
        "image_grid_pinpoints": None,
        "image_token_index": image_id,
        "initializer_range": 0.02,
        "intermediate_size": decoder.intermediate_size,
        "max_position_embeddings": decoder.max_position_embeddings,
        "max_window_layers": decoder.num_hidden_layers,
        "mm_hidden_size": encoder.output_size,
        "mm_patch_merge_type": "flat",
        "mm_projector_type": "mlp2x_gelu",
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": f"mobileclip_l_{resolution}",
        "model_type": "llava_qwen2",
        "num_attention_heads": decoder.num_attention_heads,
        "num_hidden_layers": decoder.num_hidden_layers,
        "num_key_value_heads": decoder.num_key_value_heads,
        "rms_norm_eps": decoder.norm_eps,
        "rope_theta": decoder.rope_theta,
        "sliding_window": decoder.max_position_embeddings,
        "tie_word_embeddings": decoder.tied_embeddings,
        "tokenizer_model_max_length": min(8192, decoder.max_position_embeddings),
        "tokenizer_padding_side": "right",
        "torch_dtype": dtype,
        "tune_mm_mlp_adapter": False,
        "unfreeze_mm_vision_tower": True,
        "use_cache": True,
        "use_mm_proj": True,
        "use_sliding_window": False,
        "vocab_size": decoder.vocab_size,
    }
    generation = {"do_sample": False, "eos_token_id": stop_id}
    preprocessor = {
        "crop_size": {"height": resolution, "width": resolution},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.0, 0.0, 0.0],
        "image_processor_type": "CLIPImageProcessor",
        "image_std": [1.0, 1.0, 1.0],
        "num_additional_image_tokens": 0,
        "patch_size": encoder.stride,
        "processor_class": "LlavaProcessor",
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"shortest_edge": resolution},
    }
    files = (
        ("config.json", config),
        ("generation_config.json", generation),
        ("preprocessor_config.json", preprocessor),
    )
    for name, content in files:
        write_text(folder / name, json.dumps(content, indent=2) + "\n")
