"""Idefics3 (arXiv 2408.12637) and SmolVLM (arXiv 2504.05299): SigLIP with pixel shuffle, one linear layer, and Llama.

An image is split into tiles, each announced by its row and column, and followed by a view of the whole. The encoder's
positions are counted in fractions of the tile, as transformers does; for a whole tile that numbers the patches in
order, but for grids in which float32 rounds a fraction into the bucket before.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from edgevlm.errors import CheckpointError
from edgevlm.models.checkpoint import open_checkpoint
from edgevlm.models.configs import PublishedConfig, require, section, validated
from edgevlm.models.loading import HEAD, assemble, decoder_name, named_tensors, used_tensors, vocabulary_rows
from edgevlm.models.processor_files import (
    ImageProcessorConfig,
    ProcessorFiles,
    check_pixels,
    disagree,
    read_processor_files,
)
from edgevlm.models.text_config import configured_stops, read_decoder
from edgevlm.models.tokenizer_files import TokenizerFacts, tokenizer_facts
from edgevlm.models.vit_names import image_size, read_vit, vit_name
from edgevlm.models.vlm import VlmModel
from edgevlm.spec import (
    FramedLayout,
    LinearProjectorSpec,
    ModelSpec,
    PreprocessSpec,
    PromptSpec,
    SplitTiles,
    VisionSpec,
    VitSpec,
)

MODEL_TYPES = ("idefics3", "smolvlm")
IMAGE_MARKER = "<image>"

LAYOUT = FramedLayout(
    tile_text="<fake_token_around_image><row_{row}_col_{column}>",
    row_end="\n",
    tiles_end="\n",
    whole_text="<fake_token_around_image><global-img>",
    end_text="<fake_token_around_image>",
)
#: The published conversation, behind the token that opens it.
TURNS = (
    "{% for message in messages %}"
    "{{ message['role'] | capitalize }}:{% if not message['content'].startswith('<image>') %} {% endif %}"
    "{{ message['content'] }}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
#: SmolVLM's and Idefics3's.
OPENINGS = ("<|im_start|>", "<|begin_of_text|>")

_PROJECTION = "connector.modality_projection.proj.weight"
_MODEL_CLASSES = {"idefics3": "Idefics3ForConditionalGeneration", "smolvlm": "SmolVLMForConditionalGeneration"}
#: What transformers takes for the tower's absent fields.
_TOWER = {"hidden_size": 1152, "num_attention_heads": 16, "patch_size": 32}


class _Edge(PublishedConfig):
    longest_edge: int = Field(gt=0, le=4096)


class _ImageProcessor(ImageProcessorConfig):
    resample: Literal[1, 2, 3] = 1
    image_mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    image_std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    size: _Edge | None = None
    max_image_size: _Edge | None = None
    do_image_splitting: bool = True


def load(folder: Path, raw: dict[str, Any]) -> VlmModel:
    """Load an Idefics3 or SmolVLM checkpoint; tensors stay memory-mapped.

    Raises:
        CheckpointError: a tensor is missing, unknown or mis-shaped, or the configuration does not fit.
    """
    checkpoint, tokenizer = open_checkpoint(folder), tokenizer_facts(folder)
    file = str(folder / "config.json")
    encoder = read_encoder(raw, file)
    names = named_tensors(checkpoint.shapes, lambda name: ir_name(name, encoder), str(folder))
    used = used_tensors(checkpoint, names)
    spec = read_spec(folder, raw, vocabulary_rows(used.shapes, str(folder)), tied=used.tied, tokenizer=tokenizer)
    model = assemble(spec, checkpoint, used, tokenizer)
    order = position_order(encoder.grid)
    if not torch.equal(order, torch.arange(len(order))):
        positions = model.vision.encoder.positions
        assert isinstance(positions, Tensor)
        positions.data = positions.data[order]
    return model


def ir_name(published: str, encoder: VitSpec) -> str | None:
    """A tensor name as `vision.*` or `decoder.*` of the IR; None for what the model does not use.

    Raises:
        CheckpointError: Idefics3 has no such tensor.
    """
    if published == "lm_head.weight":
        return HEAD
    name = published.removeprefix("model.")
    if name.startswith("vision_model."):
        inner = vit_name(name, encoder)
        return None if inner is None else f"vision.encoder.{inner}"
    if name.startswith("text_model."):
        return decoder_name(name.removeprefix("text_model."))
    if name == _PROJECTION:
        return "vision.projector.linear.weight"
    raise CheckpointError(f"unknown tensor {published}", "the checkpoint", "is this Idefics3 or SmolVLM?")


def read_encoder(raw: dict[str, Any], where: str) -> VitSpec:
    """The vision tower's numbers."""
    return read_vit(_tower(raw, where), where, feature_layer=-1, post_norm=True)


def read_spec(
    folder: Path, raw: dict[str, Any], vocab_size: int, *, tied: bool, tokenizer: TokenizerFacts
) -> ModelSpec:
    """The spec from configuration, processor files and tokenizer.

    Raises:
        CheckpointError: a field is missing, has a value that does not fit, or asks for what is not supported.
    """
    file = str(folder / "config.json")
    encoder, side = read_encoder(raw, file), image_size(_tower(raw, file), file)
    text = section(raw, "text_config", file)
    factor = raw.get("scale_factor", 2)
    if type(factor) is not int or factor < 1 or encoder.grid % factor:
        raise CheckpointError(f"config.json: scale_factor {factor!r:.60} does not divide {encoder.grid} patches", file)
    # Published beside SmolVLM's text fields; other values would mean another connector.
    require(text, "pixel_shuffle_factor", (factor,), file)
    require(text, "qk_layer_norms", (False,), file)
    require(text, "use_resampler", (False,), file)
    tokens = (encoder.grid // factor) ** 2
    files = read_processor_files(folder)
    files.agree("image_seq_len", tokens)
    model_type = raw.get("model_type", "idefics3")
    return ModelSpec(
        family="idefics3",
        name=folder.resolve().name,
        vision=VisionSpec(encoder, LinearProjectorSpec(bias=False), side, tokens, pixel_shuffle=factor),
        decoder=read_decoder(text, text.get("model_type", "llama"), file, vocab_size=vocab_size, tied=tied),
        preprocess=read_preprocessing(files, side),
        prompt=_prompt(raw, text, tokenizer, folder),
        model_type=model_type,
        model_class=_MODEL_CLASSES[model_type],
        licence=tokenizer.licence,
    )


def read_preprocessing(files: ProcessorFiles, side: int) -> PreprocessSpec:
    """How images become tiles of `side` pixels.

    Raises:
        CheckpointError: the processor file contradicts the configuration, or asks for what is not supported.
    """
    config = validated(_ImageProcessor, files.image, files.image_where)
    check_pixels(config, files.image_where)
    if config.max_image_size is not None:
        disagree("max_image_size", config.max_image_size.longest_edge, side, files.image_where)
    longest = 4 * side if config.size is None else config.size.longest_edge
    tiles = SplitTiles(longest, config.do_image_splitting)
    return PreprocessSpec(side, "stretch", (0, 0, 0), config.filter, config.image_mean, config.image_std, tiles)


def position_order(grid: int) -> Tensor:
    """Which row of the table of positions each patch of a whole tile takes, int64 `[grid * grid]`.

    A patch's place is a fraction of the side, sorted into as many buckets as the table has rows a side. Both are
    computed in float32, where a fraction may fall just short of the bucket that it opens.
    """
    buckets = torch.arange(1 / grid, 1.0, 1 / grid)
    fractions = torch.arange(grid, dtype=torch.float32) * (1.0 / torch.tensor([grid]))
    places = torch.bucketize(fractions.clamp(max=1.0 - 1e-6), buckets, right=True)
    return (places[:, None] * grid + places[None, :]).flatten()


def _tower(raw: dict[str, Any], where: str) -> dict[str, Any]:
    """The vision configuration with its defaults; older ones repeat the whole model's type."""
    return {**_TOWER, **section(raw, "vision_config", where), "model_type": "idefics3_vision"}


def _prompt(raw: dict[str, Any], text: dict[str, Any], tokenizer: TokenizerFacts, folder: Path) -> PromptSpec:
    file = str(folder / "tokenizer.json")
    for token in (IMAGE_MARKER, "<fake_token_around_image>", "<end_of_utterance>"):
        if token not in tokenizer.added:
            raise CheckpointError(f"tokenizer.json has no token {token}", file, "download the checkpoint again")
    opening = next((token for token in OPENINGS if token in tokenizer.added), None)
    if opening is None:
        raise CheckpointError(f"tokenizer.json has none of {', '.join(OPENINGS)}", file, "is this Idefics3 or SmolVLM?")
    image_id = tokenizer.added[IMAGE_MARKER]
    require(raw, "image_token_id", (image_id,), str(folder / "config.json"))
    return PromptSpec(
        chat_template=opening + TURNS,
        image_marker=IMAGE_MARKER,
        image_token_id=image_id,
        stop_token_ids=tokenizer.stop_ids(("<end_of_utterance>",), configured_stops(text)),
        image_text=IMAGE_MARKER,
        image_layout=LAYOUT,
    )
