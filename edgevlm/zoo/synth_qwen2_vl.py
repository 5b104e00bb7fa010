"""Qwen2-VL of published sizes with random weights, in the hub's layout; one of `edgevlm zoo synth`'s checkpoints.

In: a folder and a size. Out: `model.safetensors` (bfloat16, without the redundant head of the tied model), the
configuration files, and a tokenizer whose special tokens have their published ids.
"""

import json
import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from edgevlm.atomic import write_text
from edgevlm.errors import InputError
from edgevlm.models.decoder import Decoder
from edgevlm.models.fastvlm import CHAT_TEMPLATE
from edgevlm.models.qwen2_vision import Qwen2Vision
from edgevlm.progress import Report
from edgevlm.spec import DecoderSpec, Qwen2VisionSpec
from edgevlm.zoo.random_weights import AFTER_GELU, ROW_LEVEL, write_random
from edgevlm.zoo.synth import padded_tokenizer
from edgevlm.zoo.synth_decoders import sized
from edgevlm.zoo.tokenizer import ROWS, SPECIAL_TOKENS

#: In the order of their ids, from `<|endoftext|>` on.
_SPECIAL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>"),
    *("<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>"),
    *("<|image_pad|>", "<|video_pad|>"),
)
_PUBLISHED_LIMITS = 3136, 12845056


@dataclass(frozen=True)
class Qwen2VlSynth:
    """Sizes of one checkpoint; `special_start` is the id of the first special token."""

    encoder: Qwen2VisionSpec
    decoder: DecoderSpec
    special_start: int


def _decoder(rows: int, hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int) -> DecoderSpec:
    spec = sized("qwen2vl", rows, hidden, intermediate, layers, heads, kv_heads)
    frequencies = spec.head_dim // 2
    return replace(spec, rope_sections=(frequencies // 4, frequencies * 3 // 8, frequencies * 3 // 8))


SPECS = {
    "qwen2-vl-2b": Qwen2VlSynth(
        Qwen2VisionSpec(1280, 5120, 32, 16, 14, 2, 2), _decoder(151936, 1536, 8960, 28, 12, 2), 151643
    )
}
_TINY_START = ROWS - len(SPECIAL_TOKENS)
_TINY = Qwen2VlSynth(
    Qwen2VisionSpec(64, 256, 2, 4, 14, 2, 2), _decoder(ROWS + len(_SPECIAL), 128, 256, 2, 4, 2), _TINY_START
)


def write(
    folder: Path,
    name: str,
    *,
    tiny: bool,
    seed: int,
    resolution: int | None,
    report: Report | None,
    hollow: bool = False,
) -> None:
    """Write everything but the model card into `folder`.

    Args:
        folder: exists.
        name: one of `SPECS`.
        tiny: the same layout with small sizes.
        seed: of the weights.
        resolution: the square root of the most pixels of an image, a multiple of 28; by default as published.
        report: called with (bytes written, bytes in all, tensor name) after each tensor.
        hollow: leave holes where weights would be.

    Raises:
        InputError: the resolution is no such multiple.
    """
    spec = _TINY if tiny else SPECS[name]
    if resolution is not None and (resolution <= 0 or resolution % spec.encoder.stride):
        raise InputError(
            f"resolution {resolution} is not a multiple of {spec.encoder.stride}", "zoo synth", "use e.g. 448"
        )
    for file, content in _configuration(spec, resolution).items():
        write_text(folder / file, json.dumps(content, indent=2) + "\n")
    write_text(folder / "tokenizer.json", _tokenizer(spec.special_start))
    with (folder / "model.safetensors").open("wb") as weights:
        of_tensor = lambda tensor, shape: moments(tensor, shape, spec)  # noqa: E731
        write_random(weights, layout(spec), of_tensor, seed, report, hollow=hollow)


def layout(spec: Qwen2VlSynth) -> dict[str, tuple[int, ...]]:
    """Published tensor names and shapes, in file order."""
    encoder, merged = spec.encoder, spec.encoder.output_size
    with torch.device("meta"):
        vision, decoder = Qwen2Vision(encoder), Decoder(spec.decoder)
    shapes = {}
    for name, value in vision.state_dict().items():
        name = name.replace("patch_embed.", "patch_embed.proj.").replace("ln_q.", "merger.ln_q.")
        shapes[f"visual.{name}"] = tuple(value.shape)
    shapes["visual.patch_embed.proj.weight"] = (
        *(encoder.hidden_size, 3, encoder.frames),
        *(encoder.patch_size, encoder.patch_size),
    )
    for index, rows in ((0, merged), (2, spec.decoder.hidden_size)):
        shapes[f"visual.merger.mlp.{index}.weight"] = (rows, merged)
        shapes[f"visual.merger.mlp.{index}.bias"] = (rows,)
    return {**shapes, **{f"model.{name}": tuple(value.shape) for name, value in decoder.state_dict().items()}}


def moments(name: str, shape: tuple[int, ...], spec: Qwen2VlSynth) -> tuple[float, float]:
    """Mean and standard deviation that keep the second moment of activations near constant through every block."""
    if re.search(r"(norm\d?|layernorm|ln_q)\.weight$", name):
        return 1.0, 0.02
    if name.endswith("bias"):
        return 0.0, 0.01
    if name.endswith("embed_tokens.weight"):
        return 0.0, math.sqrt(ROW_LEVEL)
    gain = 1.0
    if name.endswith(("attn.proj.weight", "mlp.fc2.weight")):
        gain = (AFTER_GELU if "fc2" in name else 1.0) / (2 * spec.encoder.num_hidden_layers)
    elif name.endswith("merger.mlp.2.weight"):
        gain = AFTER_GELU * ROW_LEVEL
    elif name.endswith(("o_proj.weight", "down_proj.weight")):
        gain = ROW_LEVEL / (2 * spec.decoder.num_hidden_layers)
    return 0.0, math.sqrt(gain / math.prod(shape[1:]))


def _configuration(spec: Qwen2VlSynth, resolution: int | None) -> dict[str, dict[str, Any]]:
    """The JSON files, with the fields and values of the published checkpoints."""
    encoder, decoder = spec.encoder, spec.decoder
    ids = {token: spec.special_start + index for index, token in enumerate(_SPECIAL)}
    least, most = _PUBLISHED_LIMITS
    stops = [ids["<|im_end|>"], ids["<|endoftext|>"]]
    config = {
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "attention_dropout": 0.0,
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "vision_token_id": ids["<|vision_pad|>"],
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "hidden_act": "silu",
        "hidden_size": decoder.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": decoder.intermediate_size,
        "max_position_embeddings": decoder.max_position_embeddings,
        "max_window_layers": decoder.num_hidden_layers,
        "model_type": "qwen2_vl",
        "num_attention_heads": decoder.num_attention_heads,
        "num_hidden_layers": decoder.num_hidden_layers,
        "num_key_value_heads": decoder.num_key_value_heads,
        "rms_norm_eps": decoder.norm_eps,
        "rope_theta": decoder.rope_theta,
        "rope_scaling": {"type": "mrope", "mrope_section": list(decoder.rope_sections)},
        "sliding_window": decoder.max_position_embeddings,
        "tie_word_embeddings": decoder.tied_embeddings,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": decoder.vocab_size,
        "vision_config": {
            "depth": encoder.num_hidden_layers,
            "embed_dim": encoder.hidden_size,
            "mlp_ratio": encoder.intermediate_size // encoder.hidden_size,
            "num_heads": encoder.num_attention_heads,
            "in_chans": 3,
            "hidden_size": decoder.hidden_size,
            "patch_size": encoder.patch_size,
            "spatial_merge_size": encoder.merge_size,
            "spatial_patch_size": encoder.patch_size,
            "temporal_patch_size": encoder.frames,
        },
    }
    processor = {
        "min_pixels": least,
        "max_pixels": most if resolution is None else resolution**2,
        "patch_size": encoder.patch_size,
        "temporal_patch_size": encoder.frames,
        "merge_size": encoder.merge_size,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2VLProcessor",
    }
    tokenizer = {
        "add_prefix_space": False,
        "bos_token": None,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "model_max_length": decoder.max_position_embeddings,
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    return {
        "config.json": config,
        "generation_config.json": {"do_sample": False, "eos_token_id": stops},
        "preprocessor_config.json": processor,
        "tokenizer_config.json": tokenizer,
    }


def _tokenizer(special_start: int) -> str:
    """The zoo's tokenizer with Qwen2-VL's special tokens."""
    content = json.loads(padded_tokenizer(special_start).to_str())
    sample = content["added_tokens"][0]
    content["added_tokens"] = [
        {**sample, "content": token, "id": special_start + index} for index, token in enumerate(_SPECIAL)
    ]
    checked: Tokenizer = Tokenizer.from_str(json.dumps(content))
    return str(checked.to_str(pretty=True))
