"""The JSON files that make an ONNX bundle load in transformers.js without options.

In: the spec and the checkpoint's tokenizer files. Out: `config.json` (flat, as its `llava_qwen2` type wants it),
`generation_config.json`, `preprocessor_config.json`, `processor_config.json`, `tokenizer.json` and
`tokenizer_config.json` with the chat template inside. Everything EdgeVLM itself needs is in the manifest.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgevlm.errors import CheckpointError
from edgevlm.exporters.onnx import layout
from edgevlm.recipe import Precision, VisionPrecision
from edgevlm.spec import ModelSpec, PatchesSpec, PreprocessSpec, Qwen2VisionSpec


def config(spec: ModelSpec, precision: Precision, vision_precision: VisionPrecision) -> dict[str, Any]:
    """`config.json`; `transformers.js_config` names precision and external data of each component."""
    decoder, prompt = spec.decoder, spec.prompt
    components: dict[str, VisionPrecision] = {
        layout.VISION: vision_precision,
        layout.EMBEDDING: precision,
        layout.DECODER: precision,
    }
    if spec.fusion is not None:
        components[layout.FUSION] = precision
    own: dict[str, Any] = {}
    if decoder.rope_sections:
        own["rope_scaling"] = {"type": "mrope", "mrope_section": list(decoder.rope_sections)}
    if isinstance(encoder := spec.vision.encoder, Qwen2VisionSpec):
        sizes = {"patch_size": encoder.patch_size, "spatial_merge_size": encoder.merge_size}
        own["vision_config"] = {**sizes, "temporal_patch_size": encoder.frames}
        own["image_token_id"] = prompt.image_token_id
    return {
        **own,
        "architectures": [spec.model_class],
        "model_type": spec.model_type,
        "image_token_index": prompt.image_token_id,
        "bos_token_id": prompt.bos_token_id,
        "eos_token_id": list(prompt.stop_token_ids),
        "vocab_size": decoder.vocab_size,
        "hidden_size": decoder.hidden_size,
        "intermediate_size": decoder.intermediate_size,
        "num_hidden_layers": decoder.num_hidden_layers,
        "num_attention_heads": decoder.num_attention_heads,
        "num_key_value_heads": decoder.num_key_value_heads,
        "head_dim": decoder.head_dim,
        "max_position_embeddings": decoder.max_position_embeddings,
        "rms_norm_eps": decoder.norm_eps,
        "rope_theta": decoder.rope_theta,
        "tie_word_embeddings": decoder.tied_embeddings,
        "transformers.js_config": {
            "dtype": {name: layout.JS_DTYPE[used] for name, used in components.items()},
            "use_external_data_format": {layout.graph_file(name, used): 1 for name, used in components.items()},
        },
    }


def generation_config(spec: ModelSpec) -> dict[str, Any]:
    """`generation_config.json`: greedy, with the stop ids."""
    stops = list(spec.prompt.stop_token_ids)
    return {
        "bos_token_id": spec.prompt.bos_token_id,
        "eos_token_id": stops,
        "pad_token_id": stops[0] if stops else None,
        "do_sample": False,
    }


def preprocessor_config(spec: PreprocessSpec) -> dict[str, Any]:
    """`preprocessor_config.json`.

    For `pad`, both edges are bounded and the centre crop, larger than the image, pads with black; the session pads
    before it resizes, so pixels along the border of the picture differ slightly.
    """
    if spec.patches is not None:
        return _patches_config(spec, spec.patches)
    size = {"shortest_edge": spec.image_size}
    if spec.fit == "pad":
        size["longest_edge"] = spec.image_size
    return {
        "processor_class": "LlavaProcessor",
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": size,
        "resample": 3 if spec.resample == "bicubic" else 2,
        "do_center_crop": True,
        "crop_size": {"height": spec.image_size, "width": spec.image_size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": spec.mean != (0.0, 0.0, 0.0) or spec.std != (1.0, 1.0, 1.0),
        "image_mean": list(spec.mean),
        "image_std": list(spec.std),
    }


def _patches_config(spec: PreprocessSpec, patches: PatchesSpec) -> dict[str, Any]:
    """`preprocessor_config.json` for images that keep their shape."""
    return {
        "processor_class": "Qwen2VLProcessor",
        "image_processor_type": "Qwen2VLImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "min_pixels": patches.min_pixels,
        "max_pixels": patches.max_pixels,
        "size": {"shortest_edge": patches.min_pixels, "longest_edge": patches.max_pixels},
        "resample": 3,
        "patch_size": patches.patch_size,
        "merge_size": patches.merge_size,
        "temporal_patch_size": patches.frames,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(spec.mean),
        "image_std": list(spec.std),
    }


def processor_config(spec: ModelSpec) -> dict[str, Any]:
    """`processor_config.json`: how many image tokens an image becomes; fewer than patches where tokens are pruned."""
    vision = spec.vision
    return {
        "processor_class": "LlavaProcessor",
        "image_token": spec.prompt.image_marker,
        "patch_size": vision.stride,
        "num_additional_image_tokens": vision.image_tokens - (vision.image_size // vision.stride) ** 2,
    }


def tokenizer(spec: ModelSpec, source: dict[str, Any], where: str) -> dict[str, Any]:
    """`tokenizer.json` that also knows the image marker, as one special token.

    Raises:
        CheckpointError: another token has the image token's id.
    """
    marker, image_id = spec.prompt.image_marker, spec.prompt.image_token_id
    added = list(source.get("added_tokens", []))
    if any(entry["content"] == marker for entry in added):
        return source
    if any(entry["id"] == image_id for entry in added):
        raise CheckpointError(f"token id {image_id} stands for images and for another token", where)
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added.append({"id": image_id, "content": marker, **flags})
    return {**source, "added_tokens": added}


def tokenizer_config(spec: ModelSpec, source: dict[str, Any]) -> dict[str, Any]:
    """`tokenizer_config.json` with the chat template inside; nothing is added around a prompt."""
    kept = {key: value for key, value in source.items() if key not in ("chat_template", "added_tokens_decoder")}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **kept,
        "add_bos_token": False,
        "model_max_length": spec.decoder.max_position_embeddings,
        "chat_template": spec.prompt.chat_template,
    }


def write_configs(
    spec: ModelSpec,
    tokenizer_files: dict[str, Path],
    out: Path,
    precision: Precision,
    vision_precision: VisionPrecision,
) -> list[str]:
    """Write all files, without those of a processor for a model that cuts images into tiles; returns their names.

    Raises:
        CheckpointError: there is no readable `tokenizer.json`.
        OSError: a file cannot be written.
    """
    contents = {
        "config.json": config(spec, precision, vision_precision),
        "generation_config.json": generation_config(spec),
    }
    # What transformers.js has for tiles feeds other vision graphs than this one: no file is better than a wrong one.
    if spec.preprocess.tiles is None:
        contents["preprocessor_config.json"] = preprocessor_config(spec.preprocess)
        contents["processor_config.json"] = processor_config(spec)
    return [*_write(contents, out), *write_tokenizer(spec, tokenizer_files, out)]


def write_tokenizer(spec: ModelSpec, tokenizer_files: dict[str, Path], out: Path) -> list[str]:
    """Write `tokenizer.json` and `tokenizer_config.json`; returns their names.

    Raises:
        CheckpointError: there is no readable `tokenizer.json`.
        OSError: a file cannot be written.
    """
    if "tokenizer.json" not in tokenizer_files:
        raise CheckpointError("the checkpoint has no tokenizer.json", spec.name, "export it with transformers first")
    source = tokenizer_files["tokenizer.json"]
    settings = tokenizer_files.get("tokenizer_config.json")
    contents = {
        "tokenizer.json": tokenizer(spec, _read(source), str(source)),
        "tokenizer_config.json": tokenizer_config(spec, _read(settings) if settings else {}),
    }
    return _write(contents, out)


def _write(contents: dict[str, dict[str, Any]], out: Path) -> list[str]:
    for name, content in contents.items():
        text = json.dumps(content, indent=2, ensure_ascii=False)
        (out / name).write_text(text + "\n", encoding="utf-8")
    return list(contents)


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path.name} cannot be read: {error}", str(path), "download it again") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path.name} is not a JSON object", str(path), "download it again")
    return data
