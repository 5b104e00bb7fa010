"""LLaVA-OneVision (arXiv 2408.03326): SigLIP, a two-layer projector, and Qwen2.

An image is seen whole and as tiles of the canvas that suits it best. The tiles' features are laid out as one map,
without padding, and each row of it ends with the learned `image_newline`; several images in one question are seen whole
alone. Video is not read.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from edgevlm.errors import CheckpointError
from edgevlm.models.anyres import Pinpoints, load_with_newline, read_tiles
from edgevlm.models.configs import ImageTokenConfig, require, section, validated
from edgevlm.models.loading import vocabulary_rows
from edgevlm.models.processor_files import (
    ImageProcessorConfig,
    ImageSize,
    ProcessorFiles,
    check_pixels,
    disagree,
    read_processor_files,
)
from edgevlm.models.text_config import configured_stops, read_decoder
from edgevlm.models.tokenizer_files import TokenizerFacts
from edgevlm.models.vit_names import image_size, read_vit
from edgevlm.models.vlm import VlmModel
from edgevlm.spec import MlpProjectorSpec, ModelSpec, PreprocessSpec, PromptSpec, RowsLayout, VisionSpec, VitSpec

MODEL_TYPES = ("llava_onevision",)
IMAGE_MARKER = "<image>"
#: The published conversation: a space after the role, no line break after a turn, text on a line of its own.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }} "
    "{% if not message['content'].startswith('<image>') %}\n{% endif %}{{ message['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
#: Canvases of up to six by six tiles of 384 pixels, transformers' default.
PINPOINTS = tuple((384 * rows, 384 * columns) for rows in range(1, 7) for columns in range(1, 7))

#: What transformers takes for the tower where `vision_config` is absent.
_TOWER = {
    "model_type": "siglip_vision_model",
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 26,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
}


class _Config(ImageTokenConfig):
    """The fields of `config.json` beside the nested ones."""

    vision_feature_layer: int = -1
    vision_feature_select_strategy: Literal["full"] = "full"
    vision_aspect_ratio: str = "anyres_max_9"
    image_grid_pinpoints: Pinpoints = PINPOINTS


class _ImageProcessor(ImageProcessorConfig):
    resample: Literal[1, 2, 3] = 3
    image_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    size: ImageSize | None = None
    do_center_crop: Literal[False] = False


def load(folder: Path, raw: dict[str, Any]) -> VlmModel:
    """Load a LLaVA-OneVision checkpoint; tensors stay memory-mapped.

    Raises:
        CheckpointError: a tensor is missing, unknown or mis-shaped, or the configuration does not fit.
    """
    return load_with_newline(
        folder,
        read_encoder(raw, str(folder / "config.json")),
        lambda shapes, tied, tokenizer: read_spec(folder, raw, shapes, tied=tied, tokenizer=tokenizer),
    )


def read_encoder(raw: dict[str, Any], where: str) -> VitSpec:
    """The vision tower's numbers, as far as its features are taken.

    Raises:
        CheckpointError: a field has a value that does not fit, or it is no SigLIP.
    """
    config, tower = validated(_Config, raw, where), _tower(raw, where)
    encoder = read_vit(tower, where, feature_layer=config.vision_feature_layer)
    if encoder.class_token:
        raise CheckpointError("config.json: a vision tower with a class token is not supported", where)
    return encoder


def read_spec(
    folder: Path, raw: dict[str, Any], shapes: dict[str, tuple[int, ...]], *, tied: bool, tokenizer: TokenizerFacts
) -> ModelSpec:
    """The spec from configuration, tensor shapes (IR names), processor files and tokenizer.

    Raises:
        CheckpointError: a field is missing, has a value that does not fit, or asks for what is not supported; or a
            processor file contradicts `config.json`.
    """
    file = str(folder / "config.json")
    require(raw, "projector_hidden_act", ("gelu",), file)
    require(raw, "multimodal_projector_bias", (True,), file)
    require(raw, "use_image_newline_parameter", (True,), file)
    config, text = validated(_Config, raw, file), section(raw, "text_config", file)
    encoder, side = read_encoder(raw, file), image_size(_tower(raw, file), file)
    budget = re.fullmatch(r"anyres_max_([1-9]\d?)", config.vision_aspect_ratio)
    if budget is None:
        raise CheckpointError(
            f"config.json: vision_aspect_ratio {config.vision_aspect_ratio!r:.60} is not supported",
            file,
            "supported: anyres_max_9 and the like",
        )
    tokens, files = encoder.grid**2, read_processor_files(folder)
    files.agree("num_image_tokens", tokens)
    files.agree("vision_feature_select_strategy", config.vision_feature_select_strategy)
    files.agree("vision_aspect_ratio", config.vision_aspect_ratio)
    rows = vocabulary_rows(shapes, str(folder))
    decoder = read_decoder(text, text.get("model_type", "qwen2"), file, vocab_size=rows, tied=tied)
    return ModelSpec(
        family="llava_onevision",
        name=folder.resolve().name,
        vision=VisionSpec(encoder, MlpProjectorSpec(decoder.hidden_size), side, tokens),
        decoder=decoder,
        preprocess=read_preprocessing(files, config.image_grid_pinpoints, side, file),
        prompt=_prompt(config, text, tokenizer, folder, int(budget[1])),
        model_type="llava_onevision",
        model_class="LlavaOnevisionForConditionalGeneration",
        licence=tokenizer.licence,
    )


def read_preprocessing(files: ProcessorFiles, pinpoints: Pinpoints, side: int, where: str) -> PreprocessSpec:
    """How images become tiles of `side` pixels.

    Args:
        files: the processor files.
        pinpoints: the canvases of `config.json`.
        side: of the tower's input, in pixels.
        where: `config.json`, for messages.

    Raises:
        CheckpointError: the processor contradicts the configuration, or a canvas is not made of whole tiles.
    """
    raw = {key: value for key, value in files.image.items() if value is not None}
    config = validated(_ImageProcessor, raw, files.image_where)
    check_pixels(config, files.image_where)
    if config.size is not None:
        disagree("size", (config.size.height, config.size.width), (side, side), files.image_where)
    tiles = read_tiles(files, pinpoints, side, where)
    red, green, blue = (int(value * 255) for value in config.image_mean)
    return PreprocessSpec(side, "pad", (red, green, blue), config.filter, config.image_mean, config.image_std, tiles)


def _tower(raw: dict[str, Any], where: str) -> dict[str, Any]:
    return section(raw, "vision_config", where) or dict(_TOWER)


def _prompt(
    config: _Config, text: dict[str, Any], tokenizer: TokenizerFacts, folder: Path, max_tiles: int
) -> PromptSpec:
    for token in (IMAGE_MARKER, "<|im_start|>", "<|im_end|>"):
        if token not in tokenizer.added:
            raise CheckpointError(
                f"tokenizer.json has no token {token}", str(folder / "tokenizer.json"), "download the checkpoint again"
            )
    image_id = tokenizer.added[IMAGE_MARKER]
    require(vars(config), "image_token_index", (image_id,), str(folder / "config.json"))
    return PromptSpec(
        chat_template=CHAT_TEMPLATE,
        image_marker=IMAGE_MARKER,
        image_token_id=image_id,
        stop_token_ids=tokenizer.stop_ids(("<|im_end|>", "<|endoftext|>"), configured_stops(text)),
        image_text=IMAGE_MARKER,
        after_images="\n",
        image_layout=RowsLayout(max_tiles),
    )
