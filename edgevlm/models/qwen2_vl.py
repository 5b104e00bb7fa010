"""Qwen2-VL (arXiv 2409.12191): images of any shape, and Qwen2 with positions on three axes.

The checkpoints on the hub name their tensors `visual.*` and `model.*` and hold the text's numbers at the top of
`config.json`; those written by current transformers say `model.visual.*`, `model.language_model.*` and `text_config`.
Both become the same `VlmModel`. Video is not read.
"""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import AliasChoices, Field

from edgevlm.errors import CheckpointError
from edgevlm.models.checkpoint import open_checkpoint
from edgevlm.models.configs import PublishedConfig, require, section, validated
from edgevlm.models.fastvlm import CHAT_TEMPLATE
from edgevlm.models.loading import HEAD, assemble, decoder_name, named_tensors, used_tensors, vocabulary_rows
from edgevlm.models.processor_files import ImageProcessorConfig, check_pixels, disagree, read_processor_files
from edgevlm.models.tensor_source import Source
from edgevlm.models.text_config import configured_stops, read_decoder, rope_fields
from edgevlm.models.tokenizer_files import TokenizerFacts, tokenizer_facts
from edgevlm.models.vlm import VlmModel
from edgevlm.spec import (
    DecoderSpec,
    MlpProjectorSpec,
    ModelSpec,
    PatchesSpec,
    PreprocessSpec,
    PromptSpec,
    Qwen2VisionSpec,
    VisionSpec,
)

MODEL_TYPES = ("qwen2_vl",)
IMAGE_MARKER = "<|image_pad|>"
IMAGE_TEXT = f"<|vision_start|>{IMAGE_MARKER}<|vision_end|>"
#: Most pixels of an image unless a resolution is asked for. Published processors allow ten times as many, more tokens
#: than a context on a device holds; this is the limit that the model's authors recommend for balance.
MAX_PIXELS = 1280 * 28 * 28

_HINT = "give the published files"
_ENCODER = {"patch_embed.proj": "patch_embed", "merger.ln_q": "ln_q"}
_PROJECTOR = {"merger.mlp.0": "linear_1", "merger.mlp.2": "linear_2"}
_BOUNDS = {
    "shortest_edge": "min_pixels",
    "longest_edge": "max_pixels",
    "min_pixels": "min_pixels",
    "max_pixels": "max_pixels",
}
#: Fields of the towers that came after: windows (Qwen2.5-VL), features of several layers (Qwen3-VL).
_LATER = ("fullatt_block_indexes", "window_size", "deepstack_visual_indexes")
_KERNEL = "vision.encoder.patch_embed.weight"


class _VisionConfig(PublishedConfig):
    """`vision_config`."""

    depth: int = Field(gt=0, le=512)
    embed_dim: int = Field(gt=0, le=1 << 16)
    num_heads: int = Field(gt=0, le=1024)
    mlp_ratio: float = Field(default=4, gt=0, le=64)
    hidden_act: Literal["quick_gelu"] = "quick_gelu"
    in_channels: Literal[3] = Field(default=3, validation_alias=AliasChoices("in_channels", "in_chans"))
    patch_size: int = Field(default=14, gt=0, le=256)
    spatial_merge_size: int = Field(default=2, gt=0, le=16)
    temporal_patch_size: int = Field(default=2, gt=0, le=16)


class _Rope(PublishedConfig):
    """`rope_scaling` (hub) or `rope_parameters` (transformers 5)."""

    mrope_section: tuple[int, int, int]
    rope_theta: float = Field(default=1e6, gt=1, allow_inf_nan=False)
    rope_type: Literal["default", "mrope"] = "default"
    type: Literal["default", "mrope"] = "mrope"
    mrope_interleaved: Literal[False] = False


class _Processor(ImageProcessorConfig):
    """The image processor's fields, with Qwen2-VL's defaults; `size` may hold the bounds by other names."""

    min_pixels: int = Field(default=56 * 56, gt=0)
    max_pixels: int = Field(default=MAX_PIXELS, gt=0)
    resample: Literal[3] = 3
    image_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)


def ir_name(published: str) -> str | None:
    """A tensor name of either layout as `vision.*` or `decoder.*` of the IR; None for what the model does not use.

    Raises:
        CheckpointError: Qwen2-VL has no such tensor.
    """
    name = re.sub(r"^model\.(language_model\.|(?=visual\.))", "", published)
    if name.startswith("visual."):
        stem, _, kind = name.removeprefix("visual.").rpartition(".")
        if stem in _PROJECTOR:
            return f"vision.projector.{_PROJECTOR[stem]}.{kind}"
        return f"vision.encoder.{_ENCODER.get(stem, stem)}.{kind}"
    return HEAD if name == "lm_head.weight" else decoder_name(name.removeprefix("model."))


def load(folder: Path, raw: dict[str, Any]) -> VlmModel:
    """Load a Qwen2-VL checkpoint in either layout; tensors stay memory-mapped.

    Raises:
        CheckpointError: a tensor is missing, unknown or mis-shaped, or the configuration does not fit.
    """
    checkpoint, tokenizer = open_checkpoint(folder), tokenizer_facts(folder)
    names = named_tensors(checkpoint.shapes, ir_name, str(folder))
    # The published kernel lies over a whole patch; flat, it is the same product.
    used = used_tensors(checkpoint, {name: Source(each, flat=name == _KERNEL) for name, each in names.items()})
    spec = read_spec(folder, raw, vocabulary_rows(used.shapes, str(folder)), tied=used.tied, tokenizer=tokenizer)
    return assemble(spec, checkpoint, used, tokenizer)


def read_spec(
    folder: Path, raw: dict[str, Any], vocab_size: int, *, tied: bool, tokenizer: TokenizerFacts
) -> ModelSpec:
    """The spec from configuration, processor file and tokenizer.

    Raises:
        CheckpointError: a field is missing, has the wrong type, or asks for what Qwen2-VL does not do.
    """
    file = str(folder / "config.json")
    text = {**raw, **section(raw, "text_config", file)}
    vision = section(raw, "vision_config", file)
    tower = validated(_VisionConfig, vision, file)
    require(vision, "spatial_patch_size", (tower.patch_size,), file)
    for field in _LATER:
        require(vision, field, (), file)
    encoder = Qwen2VisionSpec(
        hidden_size=tower.embed_dim,
        intermediate_size=int(tower.embed_dim * tower.mlp_ratio),
        num_hidden_layers=tower.depth,
        num_attention_heads=tower.num_heads,
        patch_size=tower.patch_size,
        merge_size=tower.spatial_merge_size,
        frames=tower.temporal_patch_size,
    )
    if encoder.hidden_size % (4 * encoder.num_attention_heads):
        raise CheckpointError("config.json: num_heads does not divide embed_dim into heads of 4 n", file, _HINT)
    preprocess, notes = read_preprocessing(folder, encoder)
    return ModelSpec(
        family="qwen2_vl",
        name=folder.resolve().name,
        vision=VisionSpec(
            encoder=encoder,
            projector=MlpProjectorSpec(encoder.output_size),
            image_size=preprocess.image_size,
            image_tokens=(preprocess.image_size // encoder.stride) ** 2,
        ),
        decoder=_decoder(text, vocab_size, tied, file),
        preprocess=preprocess,
        prompt=PromptSpec(
            chat_template=CHAT_TEMPLATE,
            image_marker=IMAGE_MARKER,
            image_token_id=_image_token(tokenizer, raw, file),
            stop_token_ids=tokenizer.stop_ids(("<|im_end|>", "<|endoftext|>"), configured_stops(text)),
            image_text=IMAGE_TEXT,
        ),
        model_type="qwen2_vl",
        model_class="Qwen2VLForConditionalGeneration",
        licence=tokenizer.licence,
        notes=notes,
    )


def _decoder(text: dict[str, Any], vocab_size: int, tied: bool, file: str) -> DecoderSpec:
    """Qwen2's numbers, and the sections of its rotary frequencies."""
    rope = validated(_Rope, rope_fields(text, file), file)
    plain = {**text, "rope_theta": rope.rope_theta, "rope_parameters": None, "rope_scaling": None}
    decoder = read_decoder(plain, "qwen2", file, vocab_size=vocab_size, tied=tied)
    if 2 * sum(rope.mrope_section) != decoder.head_dim or min(rope.mrope_section) < 1:
        raise CheckpointError(
            f"config.json: mrope_section {list(rope.mrope_section)} does not divide a head of {decoder.head_dim}", file
        )
    return dataclasses.replace(decoder, architecture="qwen2vl", rope_sections=rope.mrope_section)


def read_preprocessing(folder: Path, encoder: Qwen2VisionSpec) -> tuple[PreprocessSpec, tuple[str, ...]]:
    """How images become patches, and what differs from the published processor.

    Raises:
        CheckpointError: the processor file contradicts the configuration, or asks for what is not supported.
    """
    files = read_processor_files(folder)
    raw, where = files.image, files.image_where
    size = section(raw, "size", where)
    for name in sorted(size.keys() - _BOUNDS.keys()):
        raise CheckpointError(f"size has a field {name!r:.60}", where, f"supported: {', '.join(_BOUNDS)}")
    bounds = {_BOUNDS[name]: value for name, value in size.items()}
    processor = validated(_Processor, {**bounds, **raw}, where)
    disagree("patch_size", raw.get("patch_size"), encoder.patch_size, where)
    disagree("merge_size", raw.get("merge_size"), encoder.merge_size, where)
    disagree("temporal_patch_size", raw.get("temporal_patch_size"), encoder.frames, where)
    check_pixels(processor, where)
    most = min(processor.max_pixels, MAX_PIXELS)
    if not processor.min_pixels <= most or most < encoder.stride**2:
        raise CheckpointError(f"images of {processor.min_pixels} to {most} pixels cannot be", where, _HINT)
    notes: tuple[str, ...] = ()
    if most < processor.max_pixels:
        notes = (f"images get at most {most} pixels; the published limit is {processor.max_pixels} (--resolution)",)
    spec = PreprocessSpec(
        image_size=math.isqrt(most) // encoder.stride * encoder.stride,
        mean=processor.image_mean,
        std=processor.image_std,
        patches=PatchesSpec(encoder.patch_size, encoder.merge_size, encoder.frames, processor.min_pixels, most),
    )
    return spec, notes


def _image_token(tokenizer: TokenizerFacts, raw: dict[str, Any], file: str) -> int:
    """The id of `<|image_pad|>`."""
    for token in (IMAGE_MARKER, "<|vision_start|>", "<|vision_end|>"):
        if token not in tokenizer.added:
            raise CheckpointError(f"tokenizer.json has no token {token}", file, "download the checkpoint again")
    found, configured = tokenizer.added[IMAGE_MARKER], raw.get("image_token_id")
    if configured is not None and configured != found:
        raise CheckpointError(f"image_token_id is {configured!r:.20} here and {found} in tokenizer.json", file, _HINT)
    return found
