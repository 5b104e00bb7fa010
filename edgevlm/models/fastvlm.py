"""FastVLM (arXiv 2412.13303): FastViTHD, a two-layer projector and Qwen2, from both published layouts.

Apple's checkpoints say `llava_qwen2`; the transformers conversion says `fast_vlm`. Both become the same `VlmModel`:
BatchNorm folded, the unused CLIP head dropped, dimensions read from the tensors, embeddings tied where the data say so.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from edgevlm.errors import CheckpointError
from edgevlm.models.checkpoint import open_checkpoint
from edgevlm.models.configs import PublishedConfig, require, section, validated
from edgevlm.models.fastvithd import fold_batchnorm
from edgevlm.models.loading import HEAD, build_checked, decoder_name, named_tensors, used_tensors, vocabulary_rows
from edgevlm.models.processor_files import ProcessorFiles, disagree, read_processor_files
from edgevlm.models.square_images import read_square
from edgevlm.models.tensors import assign
from edgevlm.models.text_config import configured_stops, read_decoder
from edgevlm.models.tokenizer_files import TokenizerFacts, tokenizer_facts
from edgevlm.models.vlm import VlmModel, check_resolution
from edgevlm.spec import FastViTHDSpec, MlpProjectorSpec, ModelSpec, PreprocessSpec, PromptSpec, VisionSpec

MODEL_TYPES = ("llava_qwen2", "fast_vlm")
DEFAULT_RESOLUTION = 1024

#: The `qwen_2` conversation of the published code; its system line is Qwen2's.
CHAT_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

#: Index in Apple's `network` list of each stage's blocks, and of what stands before them.
_STAGES = (0, 2, 4, 7, 10)
_DOWNSAMPLES = {1: 1, 2: 3, 3: 5, 4: 8}
_POSITIONS = {3: 6, 4: 9}

#: What the published code and transformers' compute; the fields of both layouts.
_SUPPORTED: dict[str, tuple[Any, ...]] = {
    "mm_projector_type": ("mlp2x_gelu",),
    "mm_patch_merge_type": ("flat",),
    "mm_resampler_type": (),
    "mm_use_im_start_end": (False,),
    "image_aspect_ratio": ("pad", "square"),
    "projector_hidden_act": ("gelu",),
    "multimodal_projector_bias": (True,),
    "vision_feature_layer": (-1,),
    "vision_feature_select_strategy": ("full",),
}
#: The default of transformers' class stands in files of any resolution.
_DEFAULT_TOKENS = 576

_APPLE_VISION = "model.vision_tower.vision_tower.model."
_HF_VISION = "model.vision_tower.timm_model."


class _Config(PublishedConfig):
    """The fields of `config.json` beside the decoder's that matter."""

    mm_vision_tower: str | None = None
    image_aspect_ratio: str = "pad"
    image_token_index: int | None = None


def apple_name(name: str) -> str:
    """A tensor name of the transformers layout as Apple's; other names are returned unchanged."""
    if name.startswith(_HF_VISION):
        return _APPLE_VISION + _apple_vision_name(name.removeprefix(_HF_VISION))
    name = re.sub(r"^model\.language_model\.", "model.", name)
    return re.sub(
        r"^model\.multi_modal_projector\.linear_([12])\.",
        lambda match: f"model.mm_projector.{2 * (int(match[1]) - 1)}.",
        name,
    )


def _apple_vision_name(name: str) -> str:
    """`stages.1.blocks.0.mlp.fc1.weight` as `network.2.0.convffn.fc1.weight`."""
    name = re.sub(r"^stem\.", "patch_embed.", name)
    name = re.sub(r"^stages\.([0-4])\.blocks\.", lambda match: f"network.{_STAGES[int(match[1])]}.", name)
    name = re.sub(
        r"^stages\.([1-4])\.downsample\.proj\.0\.reparam_conv",
        lambda match: f"network.{_DOWNSAMPLES[int(match[1])]}.proj.0.lkb_reparam",
        name,
    )
    name = re.sub(r"^stages\.([1-4])\.downsample\.", lambda match: f"network.{_DOWNSAMPLES[int(match[1])]}.", name)
    name = re.sub(r"^stages\.([34])\.pos_emb\.", lambda match: f"network.{_POSITIONS[int(match[1])]}.", name)
    name = name.replace("final_conv.se.fc1.", "conv_exp.se.reduce.").replace(
        "final_conv.se.fc2.", "conv_exp.se.expand."
    )
    name = re.sub(r"^final_conv\.", "conv_exp.", name)
    name = name.replace(".mlp.", ".convffn.")
    return re.sub(r"(layer_scale(?:_[12])?)\.gamma$", r"\1", name)


def module_name(apple: str) -> str | None:
    """An Apple tensor name as `vision.*` or `decoder.*` of the IR; None for what the model does not use.

    Raises:
        CheckpointError: FastVLM has no such tensor.
    """
    if apple.startswith(_APPLE_VISION):
        rest = apple.removeprefix(_APPLE_VISION)
        return None if rest == "head.proj" else f"vision.encoder.{rest}"
    if match := re.fullmatch(r"model\.mm_projector\.([02])\.(weight|bias)", apple):
        return f"vision.projector.linear_{int(match[1]) // 2 + 1}.{match[2]}"
    if apple.startswith(("model.embed_tokens.", "model.layers.", "model.norm.")):
        return decoder_name(apple.removeprefix("model."))
    if apple == "lm_head.weight":
        return HEAD
    raise CheckpointError(f"unknown tensor {apple}", "the checkpoint", "FastVLM has no such tensor; is this FastVLM?")


def read_encoder(shapes: dict[str, tuple[int, ...]]) -> FastViTHDSpec:
    """The encoder's dimensions from its tensors' shapes (IR names).

    Raises:
        CheckpointError: the tensors are not those of a FastViTHD.
    """
    prefix = "vision.encoder."

    def shape(name: str) -> tuple[int, ...]:
        try:
            return shapes[prefix + name]
        except KeyError:
            raise CheckpointError(f"tensor {name} of the vision tower is missing", "the checkpoint") from None

    dims = [shape("patch_embed.0.reparam_conv.weight")[0]]
    dims += [shape(f"network.{index}.proj.1.reparam_conv.weight")[0] for index in _DOWNSAMPLES.values()]
    depths = []
    for index in _STAGES:
        blocks = {name.split(".")[4] for name in shapes if name.startswith(f"{prefix}network.{index}.")}
        depths.append(len(blocks))
    hidden = shape("network.0.0.convffn.fc1.weight")[0]
    return FastViTHDSpec(
        depths=tuple(depths),
        dims=tuple(dims),
        mlp_ratio=hidden // dims[0],
        squeeze_channels=shape("conv_exp.se.reduce.weight")[0],
    )


def read_spec(
    folder: Path, raw: dict[str, Any], shapes: dict[str, tuple[int, ...]], *, tied: bool, tokenizer: TokenizerFacts
) -> ModelSpec:
    """The spec from `config.json` in either layout, tensor shapes (IR names) and tokenizer.

    Raises:
        CheckpointError: a field is missing, has a value that does not fit, or asks for what FastVLM does not do.
    """
    file = str(folder / "config.json")
    text = {"rope_theta": 1e6, **raw, **section(raw, "text_config", file)}
    for field, allowed in _SUPPORTED.items():
        require(raw, field, allowed, file)
    config = validated(_Config, text, file)
    encoder, files = read_encoder(shapes), read_processor_files(folder)
    resolution = _resolution(files, config)
    tokens = (resolution // encoder.stride) ** 2
    _check_encoder(raw, encoder, tokens, file)
    projector = shapes.get("vision.projector.linear_1.weight")
    if projector is None:
        raise CheckpointError(
            "tensor model.mm_projector.0.weight is missing", str(folder), "download the checkpoint again"
        )
    spec = ModelSpec(
        family="fastvlm",
        name=folder.resolve().name,
        vision=VisionSpec(
            encoder=encoder,
            image_size=resolution,
            image_tokens=tokens,
            projector=MlpProjectorSpec(projector[0]),
        ),
        decoder=read_decoder(text, "qwen2", file, vocab_size=vocabulary_rows(shapes, str(folder)), tied=tied),
        preprocess=_read_preprocess(files, resolution, encoder.stride, config.image_aspect_ratio),
        prompt=PromptSpec(
            chat_template=CHAT_TEMPLATE,
            image_token_id=tokenizer.image_token_id(config.image_token_index, file),
            stop_token_ids=tokenizer.stop_ids(("<|im_end|>", "<|endoftext|>"), configured_stops(text)),
        ),
        model_type="llava_qwen2",
        model_class="LlavaQwen2ForCausalLM",
        licence=tokenizer.licence,
    )
    check_resolution(spec, resolution)
    return spec


def _check_encoder(raw: dict[str, Any], encoder: FastViTHDSpec, tokens: int, file: str) -> None:
    """Refuse a configuration of another tower, or of another number of image tokens.

    Raises:
        CheckpointError: names the field and what is supported.
    """
    require(raw, "mm_hidden_size", (encoder.output_size,), file)
    require(raw, "image_seq_length", (_DEFAULT_TOKENS, tokens), file)
    if raw.get("model_type") == "fast_vlm":
        vision = section(raw, "vision_config", file)
        require(vision, "architecture", ("fastvit_mci3",), file)
        require(vision, "hidden_size", (encoder.output_size,), file)


def _resolution(files: ProcessorFiles, config: _Config) -> int:
    """Input pixels: the suffix of Apple's tower name, else the image processor's crop, else 1024."""
    if config.mm_vision_tower and (match := re.search(r"_(\d+)$", config.mm_vision_tower)):
        return int(match[1])
    for key in ("crop_size", "size"):
        size = files.image.get(key)
        size = size.get("height", size.get("shortest_edge")) if isinstance(size, dict) else size
        if isinstance(size, int) and size > 0:
            return size
    return DEFAULT_RESOLUTION


def _read_preprocess(files: ProcessorFiles, resolution: int, stride: int, aspect_ratio: str) -> PreprocessSpec:
    """CLIP's processing without normalisation, unless the processor file says otherwise.

    Raises:
        CheckpointError: a processor file contradicts the configuration, or asks for what is not supported.
    """
    for where, fields in ((files.image_where, files.image), (files.processor_where, files.processor)):
        disagree("patch_size", fields.get("patch_size"), stride, where)
        disagree("num_additional_image_tokens", fields.get("num_additional_image_tokens"), 0, where)
        disagree("vision_feature_select_strategy", fields.get("vision_feature_select_strategy"), "full", where)
    image = {"image_mean": (0.0, 0.0, 0.0), "image_std": (1.0, 1.0, 1.0), **files.image}
    tower = {"model_type": "clip_vision_model"}
    return read_square(replace(files, image=image), tower, resolution, aspect_ratio=aspect_ratio)


def load(folder: Path, raw: dict[str, Any]) -> VlmModel:
    """Load a FastVLM checkpoint in either layout; tensors stay memory-mapped.

    Raises:
        CheckpointError: a tensor is missing, unknown or mis-shaped, or the configuration does not fit.
    """
    checkpoint = open_checkpoint(folder)
    used = used_tensors(checkpoint, published_names(checkpoint.shapes))
    tokenizer = tokenizer_facts(folder)
    spec = read_spec(folder, raw, used.shapes, tied=used.tied, tokenizer=tokenizer)
    names = {name: source.published for name, source in used.sources.items()}
    vision, decoder = build_checked(spec, used.shapes, names, str(folder), batchnorm=True)
    tensors: dict[str, Tensor] = {name: source.read(checkpoint) for name, source in used.sources.items()}
    for name in [name for name in tensors if name.endswith("convffn.conv.conv.weight")]:
        fold_batchnorm(tensors, name.removesuffix(".conv.weight"))
    assign(vision, tensors, "vision.")
    assign(decoder, tensors, "decoder.")
    return VlmModel(spec, vision, decoder, tokenizer.files, checkpoint.sources)


def published_names(shapes: dict[str, tuple[int, ...]]) -> dict[str, str]:
    """IR name -> published name (of either layout), for every tensor that the model uses.

    Raises:
        CheckpointError: a tensor that FastVLM does not have.
    """
    return named_tensors(shapes, lambda name: module_name(apple_name(name)), "the checkpoint")
