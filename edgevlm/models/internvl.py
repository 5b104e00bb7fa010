"""InternVL (arXiv 2404.16821): InternViT with pixel shuffle, two linear layers behind a LayerNorm, and Qwen2.

Checkpoints in transformers' layout say `internvl`; the original ones (`internvl_chat`) hold q, k and v fused and name
everything differently. Both become the same `VlmModel`. An image is cut into the grid of tiles that is shaped most like
it, followed by a view of the whole; all their embeddings stand in the prompt one after the other.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from edgevlm.errors import CheckpointError
from edgevlm.models.checkpoint import open_checkpoint
from edgevlm.models.configs import PublishedConfig, require, section, validated
from edgevlm.models.internvl_names import tensor_sources
from edgevlm.models.loading import assemble, used_tensors, vocabulary_rows
from edgevlm.models.processor_files import ImageProcessorConfig, ImageSize, check_pixels, disagree, read_processor_files
from edgevlm.models.text_config import configured_stops, read_decoder, rope_fields
from edgevlm.models.tokenizer_files import TokenizerFacts, tokenizer_facts
from edgevlm.models.vlm import VlmModel
from edgevlm.spec import AspectTiles, MlpProjectorSpec, ModelSpec, PreprocessSpec, PromptSpec, VisionSpec, VitSpec

MODEL_TYPES = ("internvl", "internvl_chat")
IMAGE_MARKER = "<IMG_CONTEXT>"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
#: The system line of the original code's `internvl2_5` conversation; checkpoints in transformers' layout have none.
SYSTEM = "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"  # noqa: RUF001


class _VisionConfig(PublishedConfig):
    """`vision_config`; the defaults are those of transformers' layout."""

    hidden_size: int = Field(default=1024, gt=0, le=1 << 16)
    intermediate_size: int = Field(default=4096, gt=0, le=1 << 18)
    num_hidden_layers: int = Field(default=24, gt=0, le=512)
    num_attention_heads: int = Field(default=16, gt=0, le=1024)
    image_size: int = Field(default=448, gt=0, le=1 << 14)
    patch_size: int = Field(default=14, gt=0, le=1 << 10)
    layer_norm_eps: float = Field(default=1e-6, gt=0, lt=1)
    attention_bias: bool = False


class _Config(PublishedConfig):
    """The fields of `config.json` beside the towers'."""

    downsample_ratio: float = Field(default=0.5, gt=0, le=1)
    min_dynamic_patch: int = Field(default=1, ge=1, le=64)
    max_dynamic_patch: int = Field(default=12, ge=1, le=64)
    dynamic_image_size: bool = True


class _ImageProcessor(ImageProcessorConfig):
    resample: Literal[1, 2, 3] = 3
    image_mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    image_std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    size: ImageSize | int | None = None
    min_patches: int | None = Field(default=None, ge=1, le=64)
    max_patches: int | None = Field(default=None, ge=1, le=64)


def load(folder: Path, raw: dict[str, Any]) -> VlmModel:
    """Load an InternVL checkpoint in either layout; tensors stay memory-mapped.

    Raises:
        CheckpointError: a tensor is missing, unknown or mis-shaped, or the configuration does not fit.
    """
    checkpoint, tokenizer = open_checkpoint(folder), tokenizer_facts(folder)
    used = used_tensors(checkpoint, tensor_sources(checkpoint.shapes))
    spec = read_spec(folder, raw, vocabulary_rows(used.shapes, str(folder)), tied=used.tied, tokenizer=tokenizer)
    return assemble(spec, checkpoint, used, tokenizer)


def read_spec(
    folder: Path, raw: dict[str, Any], vocab_size: int, *, tied: bool, tokenizer: TokenizerFacts
) -> ModelSpec:
    """The spec from configuration, processor files and tokenizer.

    Raises:
        CheckpointError: a field is missing, has a value that does not fit, or asks for what is not supported.
    """
    file = str(folder / "config.json")
    original = raw.get("model_type") == "internvl_chat"
    raw = _renamed(raw, file) if original else raw
    _refuse_unsupported(raw, file)
    config = validated(_Config, raw, file)
    encoder, side = _encoder(section(raw, "vision_config", file), file)
    factor = round(1 / config.downsample_ratio)
    if abs(factor * config.downsample_ratio - 1) > 1e-6 or encoder.grid % factor:
        raise CheckpointError(
            f"config.json: downsample_ratio {config.downsample_ratio} does not divide {encoder.grid} patches", file
        )
    tokens = (encoder.grid // factor) ** 2
    require(raw, "image_seq_length", (tokens,), file)
    text, notes = _text(section(raw, "text_config", file), file)
    decoder = read_decoder(text, text.get("model_type", "qwen2"), file, vocab_size=vocab_size, tied=tied)
    return ModelSpec(
        family="internvl",
        name=folder.resolve().name,
        vision=VisionSpec(
            encoder, MlpProjectorSpec(decoder.hidden_size, input_norm=True), side, tokens, pixel_shuffle=factor
        ),
        decoder=decoder,
        preprocess=read_preprocessing(folder, config, side, tokens),
        prompt=_prompt(raw, text, tokenizer, folder, system=SYSTEM if original else ""),
        model_type="internvl",
        model_class="InternVLForConditionalGeneration",
        licence=tokenizer.licence,
        notes=notes,
    )


def read_preprocessing(folder: Path, config: _Config, side: int, tokens: int) -> PreprocessSpec:
    """How images become tiles of `side` pixels, each `tokens` embeddings.

    Raises:
        CheckpointError: a processor file contradicts the configuration, or asks for what is not supported.
    """
    files = read_processor_files(folder)
    files.agree("image_seq_length", tokens)
    processor = validated(_ImageProcessor, files.image, files.image_where)
    check_pixels(processor, files.image_where)
    size = processor.size
    if size is not None:
        edges = (size, size) if isinstance(size, int) else (size.height, size.width)
        disagree("size", edges, (side, side), files.image_where)
    least = processor.min_patches or config.min_dynamic_patch
    most = processor.max_patches or config.max_dynamic_patch
    if least > most:
        raise CheckpointError(f"min_patches {least} is above max_patches {most}", files.image_where)
    tiles = AspectTiles(least, most) if config.dynamic_image_size else AspectTiles(1, 1)
    return PreprocessSpec(
        side, "stretch", (0, 0, 0), processor.filter, processor.image_mean, processor.image_std, tiles
    )


def _renamed(raw: dict[str, Any], where: str) -> dict[str, Any]:
    """The original code's configuration with the field names of transformers.

    Raises:
        CheckpointError: it asks for what is not supported, by the original name.
    """
    require(raw, "ps_version", ("v2",), where)
    require(raw, "select_layer", (-1,), where)
    require(raw, "template", ("internvl2_5",), where)
    require(raw, "use_thumbnail", (True,), where)
    require(raw, "pad2square", (False,), where)
    vision = section(raw, "vision_config", where)
    require(vision, "qk_normalization", (False,), where)
    side = raw.get("force_image_size") or vision.get("image_size")
    return {
        **raw,
        "model_type": "internvl",
        "vision_config": {**vision, "image_size": side, "attention_bias": vision.get("qkv_bias", False)},
        "text_config": section(raw, "llm_config", where),
    }


def _refuse_unsupported(raw: dict[str, Any], where: str) -> None:
    vision = section(raw, "vision_config", where)
    # InternViT-6B normalises queries and keys, with RMSNorm.
    require(vision, "use_qk_norm", (False,), where)
    require(vision, "norm_type", ("layer_norm",), where)
    require(vision, "hidden_act", ("gelu",), where)
    require(vision, "num_channels", (3,), where)
    require(vision, "use_mask_token", (False,), where)
    require(vision, "use_mean_pooling", (True,), where)
    require(vision, "use_absolute_position_embeddings", (True,), where)
    require(raw, "vision_feature_layer", (-1,), where)
    require(raw, "vision_feature_select_strategy", ("default",), where)
    require(raw, "projector_hidden_act", ("gelu",), where)


def _encoder(raw: dict[str, Any], where: str) -> tuple[VitSpec, int]:
    """InternViT's numbers, and the pixels of a tile's side."""
    sides = {key: _side(raw, key, where) for key in ("image_size", "patch_size") if raw.get(key) is not None}
    config = validated(_VisionConfig, {**raw, **sides}, where)
    if config.hidden_size % config.num_attention_heads or config.image_size < config.patch_size:
        raise CheckpointError("config.json: the vision tower's heads or patches do not fit its sizes", where)
    spec = VitSpec(
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        patch_size=config.patch_size,
        grid=config.image_size // config.patch_size,
        norm_eps=config.layer_norm_eps,
        class_token=True,
        qkv_bias=config.attention_bias,
        layer_scale=True,
    )
    return spec, config.image_size


def _side(raw: dict[str, Any], key: str, where: str) -> Any:
    """A size that may be given for both axes."""
    value = raw[key]
    if not isinstance(value, list):
        return value
    if len(value) != 2 or value[0] != value[1]:
        raise CheckpointError(f"config.json: {key} {value!r:.60} is not a square", where)
    return value[0]


def _text(raw: dict[str, Any], where: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The text configuration without dynamic rotary scaling, which begins beyond the trained context."""
    rope = rope_fields(raw, where)
    if rope.get("rope_type", rope.get("type")) != "dynamic":
        return raw, ()
    limits = (raw.get("max_position_embeddings"), rope.get("original_max_position_embeddings"))
    trained = min((value for value in limits if type(value) is int), default=None)
    plain = {key: value for key, value in raw.items() if key not in ("rope_parameters", "rope_scaling")}
    plain |= {"rope_theta": rope["rope_theta"]} if "rope_theta" in rope else {}
    if trained is None:
        return plain, ()
    note = f"the context ends at {trained} positions, where dynamic rotary scaling would begin"
    return {**plain, "max_position_embeddings": trained}, (note,)


def _prompt(
    raw: dict[str, Any], text: dict[str, Any], tokenizer: TokenizerFacts, folder: Path, *, system: str
) -> PromptSpec:
    for token in (IMAGE_MARKER, "<img>", "</img>", "<|im_start|>", "<|im_end|>"):
        if token not in tokenizer.added:
            raise CheckpointError(
                f"tokenizer.json has no token {token}", str(folder / "tokenizer.json"), "download the checkpoint again"
            )
    image_id = tokenizer.added[IMAGE_MARKER]
    require(raw, "image_token_id", (image_id,), str(folder / "config.json"))
    return PromptSpec(
        chat_template=CHAT_TEMPLATE,
        image_marker=IMAGE_MARKER,
        image_token_id=image_id,
        stop_token_ids=tokenizer.stop_ids(("<|im_end|>", "<|endoftext|>"), configured_stops(text)),
        default_system=system,
        image_text=f"<img>{IMAGE_MARKER}</img>\n",
    )
