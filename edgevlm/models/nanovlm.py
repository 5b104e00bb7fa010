"""nanoVLM: SigLIP with pixel shuffle, one linear layer, and SmolLM2 (a Llama).

In: `config.json` with the published code's own fields (`vit_*`, `lm_*`, `mp_*`; it has no `model_type`), one
`model.safetensors`, and beside them the tokenizer, which the published folders lack. There are three generations, told
by `vlm_extra_tokens`: none, the image before a question; a token for an image, which is one square in a chat; a token
for the whole image too, which is followed by tiles. Pixels are not normalised.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from jinja2 import TemplateError
from pydantic import Field

from edgevlm.chat_template import compile_template
from edgevlm.errors import BundleError, CheckpointError
from edgevlm.models.checkpoint import open_checkpoint
from edgevlm.models.configs import PublishedConfig, validated
from edgevlm.models.loading import EMBEDDING, HEAD, assemble, used_tensors, vocabulary_rows
from edgevlm.models.tensor_source import Source
from edgevlm.models.text_config import read_decoder
from edgevlm.models.tokenizer_files import TokenizerFacts, tokenizer_facts
from edgevlm.models.vlm import VlmModel
from edgevlm.spec import (
    DecoderSpec,
    FittedTiles,
    FramedLayout,
    LinearProjectorSpec,
    ModelSpec,
    PreprocessSpec,
    PromptSpec,
    VisionSpec,
    VitSpec,
)

MODEL_TYPES = ("nanovlm",)

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
#: Of the first generation.
QUESTION_TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }}{% if message['role'] == 'user' %} Answer:{% endif %}"
    "{% endfor %}"
)
_PARTS = {
    "ln1": "norm1",
    "ln2": "norm2",
    "attn.out_proj": "attention.out_proj",
    "mlp.fc1": "fc1",
    "mlp.fc2": "fc2",
}
_DECODER = {
    "norm1": "input_layernorm",
    "norm2": "post_attention_layernorm",
    "attn.q_proj": "self_attn.q_proj",
    "attn.k_proj": "self_attn.k_proj",
    "attn.v_proj": "self_attn.v_proj",
    "attn.out_proj": "self_attn.o_proj",
    "mlp.gate_proj": "mlp.gate_proj",
    "mlp.up_proj": "mlp.up_proj",
    "mlp.down_proj": "mlp.down_proj",
}
_WHOLE = {
    "vision_encoder.patch_embedding.conv.weight": "vision.encoder.patch.weight",
    "vision_encoder.patch_embedding.conv.bias": "vision.encoder.patch.bias",
    "vision_encoder.patch_embedding.position_embedding": "vision.encoder.positions",
    "vision_encoder.layer_norm.weight": "vision.encoder.post_norm.weight",
    "vision_encoder.layer_norm.bias": "vision.encoder.post_norm.bias",
    "MP.proj.weight": "vision.projector.linear.weight",
    "decoder.token_embedding.weight": EMBEDDING,
    "decoder.norm.weight": "decoder.norm.weight",
    "decoder.head.weight": HEAD,
}


class _Config(PublishedConfig):
    """The fields that matter; one that changes the computation and has a default must have it."""

    vit_hidden_dim: int = Field(gt=0, le=1 << 16)
    vit_inter_dim: int = Field(gt=0, le=1 << 18)
    vit_patch_size: int = Field(gt=0, le=1 << 10)
    vit_img_size: int = Field(gt=0, le=1 << 14)
    vit_n_heads: int = Field(gt=0, le=1024)
    vit_n_blocks: int = Field(gt=0, le=512)
    vit_ln_eps: float = Field(default=1e-6, gt=0, lt=1)
    vit_cls_flag: Literal[False] = False
    lm_hidden_dim: int = Field(gt=0, le=1 << 16)
    lm_inter_dim: int = Field(gt=0, le=1 << 18)
    lm_rms_eps: float = Field(default=1e-5, gt=0, lt=1)
    lm_re_base: float = Field(gt=1, allow_inf_nan=False)
    lm_max_position_embeddings: int = Field(gt=0, le=1 << 24)
    lm_max_length: int | None = Field(default=None, gt=0)
    lm_n_heads: int = Field(gt=0, le=1024)
    lm_n_kv_heads: int = Field(gt=0, le=1024)
    lm_n_blocks: int = Field(gt=0, le=512)
    lm_attn_scaling: float = Field(default=1, ge=1, le=1)
    lm_use_tokens: Literal[False] = False
    lm_chat_template: str | None = None
    lm_tokenizer: str = "HuggingFaceTB/SmolLM2-360M-Instruct"
    mp_pixel_shuffle_factor: int = Field(gt=0, le=64)
    mp_image_token_length: int | None = None
    max_img_size: int | None = Field(default=None, gt=0, le=4096)
    resize_to_max_side_len: bool = False
    vlm_extra_tokens: dict[str, str] = Field(default_factory=dict)


def recognises(raw: dict[str, Any]) -> bool:
    """Whether a `config.json` without a model type is nanoVLM's."""
    return "model_type" not in raw and {"vit_hidden_dim", "lm_hidden_dim", "mp_pixel_shuffle_factor"} <= raw.keys()


def load(folder: Path, raw: dict[str, Any]) -> VlmModel:
    """Load a nanoVLM checkpoint; tensors stay memory-mapped.

    Raises:
        CheckpointError: a tensor is missing, unknown or mis-shaped, the configuration does not fit, or there is no
            tokenizer.
    """
    config = validated(_Config, raw, str(folder / "config.json"))
    checkpoint, tokenizer = open_checkpoint(folder), _tokenizer(folder, config)
    used = used_tensors(checkpoint, tensor_sources(checkpoint.shapes))
    rows = vocabulary_rows(used.shapes, str(folder))
    spec = read_spec(folder, config, rows, tied=used.tied, tokenizer=tokenizer)
    return assemble(spec, checkpoint, used, tokenizer)


def tensor_sources(shapes: dict[str, tuple[int, ...]]) -> dict[str, Source]:
    """The source of every tensor of the IR, by its name there.

    Of a tied head and embedding the published code stores one, under the head's name.

    Raises:
        CheckpointError: nanoVLM has no such tensor.
    """
    sources: dict[str, Source] = {}
    for published in shapes:
        if published == "decoder.rotary_embd.inv_freq":
            continue
        if match := re.fullmatch(r"vision_encoder\.blocks\.(\d+)\.attn\.qkv_proj\.(weight|bias)", published):
            prefix = f"vision.encoder.layers.{match[1]}.attention"
            for third, part in enumerate("qkv"):
                sources[f"{prefix}.{part}_proj.{match[2]}"] = Source(published, third)
        else:
            name = _ir_name(published)
            sources[name] = Source(published, leading=int(name == "vision.encoder.positions"))
    if EMBEDDING not in sources and HEAD in sources:
        sources[EMBEDDING] = sources.pop(HEAD)
    return sources


def read_spec(folder: Path, config: _Config, vocab_size: int, *, tied: bool, tokenizer: TokenizerFacts) -> ModelSpec:
    """The spec from configuration and tokenizer.

    Raises:
        CheckpointError: the configuration's numbers do not fit each other.
    """
    where, side = str(folder / "config.json"), config.vit_img_size
    grid, factor = side // config.vit_patch_size, config.mp_pixel_shuffle_factor
    if config.vit_hidden_dim % config.vit_n_heads or grid == 0 or grid % factor:
        raise CheckpointError("config.json: vit_n_heads or mp_pixel_shuffle_factor does not fit the tower", where)
    tokens = (grid // factor) ** 2
    if config.mp_image_token_length not in (None, tokens):
        raise CheckpointError(
            f"config.json: mp_image_token_length is {config.mp_image_token_length}, but an image makes {tokens} tokens",
            where,
        )
    encoder = VitSpec(
        hidden_size=config.vit_hidden_dim,
        intermediate_size=config.vit_inter_dim,
        num_hidden_layers=config.vit_n_blocks,
        num_attention_heads=config.vit_n_heads,
        patch_size=config.vit_patch_size,
        grid=grid,
        norm_eps=config.vit_ln_eps,
        activation="gelu_tanh",
        post_norm=True,
    )
    tiles = _tiles(config, where)
    return ModelSpec(
        family="nanovlm",
        name=folder.resolve().name,
        vision=VisionSpec(encoder, LinearProjectorSpec(bias=False), side, tokens, pixel_shuffle=factor),
        decoder=_decoder(config, vocab_size, where, tied=tied),
        preprocess=PreprocessSpec(side, "stretch", resample="bicubic" if tiles else "bilinear", tiles=tiles),
        prompt=_prompt(config, tokenizer, where),
        model_type="nanovlm",
        model_class="VisionLanguageModel",
        licence=tokenizer.licence,
    )


def _ir_name(published: str) -> str:
    if published in _WHOLE:
        return _WHOLE[published]
    match = re.fullmatch(r"(vision_encoder|decoder)\.blocks\.(\d+)\.(.+)\.(weight|bias)", published)
    part = (_PARTS if match[1] == "vision_encoder" else _DECODER).get(match[3]) if match else None
    if match is None or part is None:
        raise CheckpointError(f"unknown tensor {published}", "the checkpoint", "is this nanoVLM?")
    side = "vision.encoder" if match[1] == "vision_encoder" else "decoder"
    return f"{side}.layers.{match[2]}.{part}.{match[4]}"


def _decoder(config: _Config, vocab_size: int, where: str, *, tied: bool) -> DecoderSpec:
    length = config.lm_max_position_embeddings
    text = {
        "hidden_size": config.lm_hidden_dim,
        "intermediate_size": config.lm_inter_dim,
        "num_hidden_layers": config.lm_n_blocks,
        "num_attention_heads": config.lm_n_heads,
        "num_key_value_heads": config.lm_n_kv_heads,
        "rms_norm_eps": config.lm_rms_eps,
        "rope_theta": config.lm_re_base,
        "max_position_embeddings": min(length, config.lm_max_length or length),
    }
    return read_decoder(text, "llama", where, vocab_size=vocab_size, tied=tied)


def _tiles(config: _Config, where: str) -> FittedTiles | None:
    """How images are cut; None for one square."""
    if "global_image_token" not in config.vlm_extra_tokens:
        return None
    longest = config.max_img_size or config.vit_img_size
    if longest % config.vit_img_size:
        raise CheckpointError(
            f"config.json: max_img_size {longest} is no multiple of vit_img_size {config.vit_img_size}", where
        )
    return FittedTiles(longest, config.resize_to_max_side_len)


def _prompt(config: _Config, tokenizer: TokenizerFacts, where: str) -> PromptSpec:
    marker = config.vlm_extra_tokens.get("image_token", "<image>")
    chat = "image_token" in config.vlm_extra_tokens
    if chat:
        _check_template(config, where)
    return PromptSpec(
        chat_template=CHAT_TEMPLATE if chat else QUESTION_TEMPLATE,
        image_marker=marker,
        image_token_id=tokenizer.added.get(marker, tokenizer.size),
        stop_token_ids=tokenizer.stop_ids(("<|im_end|>", "<|endoftext|>"), ()),
        image_text=marker,
        after_images="" if chat else "Question: ",
        # The published code sets numbers before several images; models that were trained so are not known.
        max_images=1,
        image_layout=_layout(config),
    )


def _check_template(config: _Config, where: str) -> None:
    """Refuse a conversation that is not rendered as ours.

    Raises:
        CheckpointError: it is, or it cannot be rendered.
    """
    if config.lm_chat_template is None:
        return
    turns = [{"role": role, "content": text} for role, text in (("user", "a"), ("assistant", "b"), ("user", "c"))]
    try:
        published, ours = (
            compile_template(template).render(messages=turns, add_generation_prompt=True)
            for template in (config.lm_chat_template, CHAT_TEMPLATE)
        )
    except (BundleError, TemplateError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"config.json: lm_chat_template cannot be used: {reason}", where) from error
    if published != ours:
        raise CheckpointError(
            f"config.json: lm_chat_template renders {published!r:.120}", where, f"supported: {ours!r}"
        )


def _layout(config: _Config) -> FramedLayout | None:
    whole = config.vlm_extra_tokens.get("global_image_token")
    if whole is None:
        return None
    tile = config.vlm_extra_tokens.get("r1c1", "<row_1_col_1>").replace("1", "{row}", 1).replace("1", "{column}", 1)
    return FramedLayout(tile, "", "", whole, "", whole_first=True)


def _tokenizer(folder: Path, config: _Config) -> TokenizerFacts:
    """What the tokenizer's files say.

    Raises:
        CheckpointError: there is none, or it lacks a token of the configuration.
    """
    hint = f"save the tokenizer of {config.lm_tokenizer} here, with config.json's vlm_extra_tokens added in order"
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise CheckpointError("nanoVLM's folder has no tokenizer", str(file), hint)
    tokenizer = tokenizer_facts(folder)
    for token in config.vlm_extra_tokens.values():
        if token not in tokenizer.added:
            raise CheckpointError(f"tokenizer.json has no token {token}", str(file), hint)
    return tokenizer
