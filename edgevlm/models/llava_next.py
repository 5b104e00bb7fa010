"""LLaVA-NeXT (LLaVA-1.6): CLIP, a two-layer projector, and Mistral, Llama or Qwen2.

An image is seen whole and as tiles of the canvas that suits it best, as is each of several images in one question. The
tiles' features are laid out as one map, without padding, and each row of it ends with the learned `image_newline`.
Layout: transformers' `llava_next`, with the names of transformers 5 or those on the hub before.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

from edgevlm.errors import CheckpointError
from edgevlm.models import llava
from edgevlm.models.anyres import Pinpoints, load_with_newline, read_tiles
from edgevlm.models.configs import ImageTokenConfig, require, section, validated
from edgevlm.models.conversations import LLAMA3_TEMPLATE, LLAMA31_SYSTEM
from edgevlm.models.loading import vocabulary_rows
from edgevlm.models.processor_files import read_processor_files
from edgevlm.models.square_images import read_square
from edgevlm.models.text_config import read_decoder
from edgevlm.models.tokenizer_files import TokenizerFacts
from edgevlm.models.vit_names import image_size
from edgevlm.models.vlm import VlmModel
from edgevlm.spec import (
    AnyresTiles,
    MlpProjectorSpec,
    ModelSpec,
    PromptSpec,
    RowsLayout,
    VisionSpec,
    VitSpec,
)

MODEL_TYPES = ("llava_next",)
#: Canvases of two to four tiles of 336 pixels, transformers' default.
PINPOINTS = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
#: `llava_v1`'s: of a human, where LLaVA-1.5's `vicuna_v1` speaks of a user.
VICUNA_SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)


class _Config(ImageTokenConfig):
    """The fields of `config.json` beside the nested ones."""

    vision_feature_select_strategy: Literal["default", "full"] = "default"
    image_grid_pinpoints: Pinpoints = PINPOINTS


def load(folder: Path, raw: dict[str, Any]) -> VlmModel:
    """Load a LLaVA-NeXT checkpoint; tensors stay memory-mapped.

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
        CheckpointError: a field has a value that does not fit, or the features are no square.
    """
    encoder = llava.read_encoder(raw, where)
    if encoder.keep_class_token:
        raise CheckpointError(
            "config.json: vision_feature_select_strategy 'full' keeps CLIP's class token, which has no place in a row",
            where,
            "supported: 'default'",
        )
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
    config, text, tower = (
        validated(_Config, raw, file),
        section(raw, "text_config", file),
        llava.tower_config(raw, file),
    )
    encoder, side = read_encoder(raw, file), image_size(tower, file)
    files, kind = read_processor_files(folder), text.get("model_type", "llama")
    llava.check_processor(files, encoder, config.vision_feature_select_strategy)
    # The processor pads each batch, not the image, where `do_pad` says so.
    squares = read_square(dataclasses.replace(files, image={**files.image, "do_pad": None}), tower, side)
    tiles = read_tiles(files, config.image_grid_pinpoints, side, file, cut_several=True)
    rows = vocabulary_rows(shapes, str(folder))
    decoder = read_decoder(text, kind, file, vocab_size=rows, tied=tied)
    return ModelSpec(
        family="llava_next",
        name=folder.resolve().name,
        vision=VisionSpec(encoder, MlpProjectorSpec(decoder.hidden_size), side, encoder.grid**2),
        decoder=decoder,
        preprocess=dataclasses.replace(squares, fit="stretch", pad_colour=(0, 0, 0), tiles=tiles),
        prompt=_prompt(config, {**text, "model_type": kind}, tokenizer, tiles, side, file),
        model_type="llava_next",
        model_class="LlavaNextForConditionalGeneration",
        licence=tokenizer.licence,
    )


def _prompt(
    config: _Config, text: dict[str, Any], tokenizer: TokenizerFacts, tiles: AnyresTiles, side: int, where: str
) -> PromptSpec:
    """The conversation that the decoder was tuned with; no map is larger than the largest canvas.

    Raises:
        CheckpointError: files disagree on the image token, or the conversation is not known.
    """
    if text["model_type"] == "llama" and "<|im_start|>" in tokenizer.added:
        raise CheckpointError(
            "a Llama decoder with ChatML (LLaVA-v1.6-34B) is not supported", where, "supported: Vicuna and Llama 3"
        )
    prompt = llava.read_prompt(text, tokenizer, config.image_token_index, where)
    most = max(height * width for height, width in tiles.pinpoints) // side**2
    system = VICUNA_SYSTEM if prompt.default_system else ""
    if prompt.chat_template == LLAMA3_TEMPLATE:
        system = LLAMA31_SYSTEM
    return dataclasses.replace(prompt, default_system=system, image_layout=RowsLayout(most))
