"""LLaVA-1.5 (arXiv 2310.03744): CLIP or SigLIP, a two-layer projector, and Llama, Mistral, Qwen2 or Phi.

Layouts: transformers' `llava`, with the names of transformers 5 or those on the hub before (models specification, 4.2),
and the `llava_llama` of the original code. An image is one square and becomes a fixed number of tokens.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from edgevlm.errors import CheckpointError
from edgevlm.models.checkpoint import open_checkpoint
from edgevlm.models.configs import ImageTokenConfig, require, section, validated
from edgevlm.models.conversations import LLAMA3_TEMPLATE, MISTRAL_TEMPLATE, VICUNA_SYSTEM, VICUNA_TEMPLATE
from edgevlm.models.fastvlm import CHAT_TEMPLATE as CHATML_TEMPLATE
from edgevlm.models.llava_original import TOWERS, assemble_original, mlp_name, open_original, read_mlp
from edgevlm.models.loading import assemble, decoder_name, named_tensors, used_tensors, vocabulary_rows
from edgevlm.models.processor_files import ProcessorFiles, read_processor_files
from edgevlm.models.square_images import read_square
from edgevlm.models.text_config import configured_stops, read_decoder
from edgevlm.models.tokenizer_files import TokenizerFacts, tokenizer_facts
from edgevlm.models.vit_names import image_size, read_vit, vit_name
from edgevlm.models.vlm import VlmModel
from edgevlm.spec import MlpProjectorSpec, ModelSpec, PromptSpec, VisionSpec, VitSpec

MODEL_TYPES = ("llava", "llava_llama")

_DEFAULT_TOKENS = 576
#: What transformers takes where `vision_config` or a field of it is absent.
_TOWER = TOWERS["clip-vit-large-patch14-336"]


class _Config(ImageTokenConfig):
    """The fields of transformers' `config.json` beside the nested ones."""

    vision_feature_layer: int = -2
    vision_feature_select_strategy: Literal["default", "full"] = "default"


def load(folder: Path, raw: dict[str, Any]) -> VlmModel:
    """Load a LLaVA checkpoint; tensors stay memory-mapped.

    Raises:
        CheckpointError: a tensor is missing, unknown or mis-shaped, or the configuration does not fit.
    """
    if raw.get("model_type") == "llava_llama":
        original = open_original(folder, raw)
        return assemble_original(
            original,
            family="llava",
            text_kind="llama",
            prompt=read_prompt(raw, original.tokenizer, original.config.image_token_index, str(folder / "config.json")),
            projector=lambda shapes: read_mlp(original, shapes),
            projector_name=mlp_name,
        )
    checkpoint, tokenizer, file = open_checkpoint(folder), tokenizer_facts(folder), str(folder / "config.json")
    encoder = read_encoder(raw, file)
    names = named_tensors(checkpoint.shapes, lambda name: ir_name(name, encoder), str(folder))
    used = used_tensors(checkpoint, names)
    spec = read_spec(folder, raw, used.shapes, tied=used.tied, tokenizer=tokenizer)
    return assemble(spec, checkpoint, used, tokenizer)


def current_name(published: str) -> str:
    """A tensor name of any transformers layout as transformers 5 has it."""
    name = re.sub(r"^language_model\.lm_head\.", "lm_head.", published)
    name = re.sub(r"^language_model\.model\.", "model.language_model.", name)
    return re.sub(r"^(vision_tower|multi_modal_projector)\.", r"model.\1.", name)


def ir_name(published: str, encoder: VitSpec) -> str | None:
    """A tensor name of any transformers layout as the IR's; None for what the model does not use.

    Raises:
        CheckpointError: LLaVA has no such tensor.
    """
    name = current_name(published)
    if name.startswith("model.vision_tower."):
        inner = vit_name(name.removeprefix("model.vision_tower."), encoder)
        return None if inner is None else f"vision.encoder.{inner}"
    if match := re.fullmatch(r"model\.multi_modal_projector\.(linear_[12]\.(?:weight|bias))", name):
        return f"vision.projector.{match[1]}"
    if name.startswith("model.language_model."):
        return decoder_name(name.removeprefix("model.language_model."))
    if name.startswith("lm_head."):
        return f"decoder.{name}"
    raise CheckpointError(f"unknown tensor {published}", "the checkpoint", "LLaVA has no such tensor; is this LLaVA?")


def read_encoder(raw: dict[str, Any], where: str) -> VitSpec:
    """The vision tower's numbers, as far as its features are taken."""
    config = validated(_Config, raw, where)
    full = config.vision_feature_select_strategy == "full"
    encoder = read_vit(tower_config(raw, where), where, feature_layer=config.vision_feature_layer, class_token=full)
    if not (full or encoder.class_token):
        raise CheckpointError(
            "config.json: vision_feature_select_strategy 'default' drops SigLIP's first patch, which is not supported",
            where,
            "supported: 'full'",
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
    config, text, tower = validated(_Config, raw, file), section(raw, "text_config", file), tower_config(raw, file)
    encoder, side = read_encoder(raw, file), image_size(tower, file)
    projector = shapes.get("vision.projector.linear_1.weight")
    if projector is None:
        raise CheckpointError("tensor multi_modal_projector.linear_1.weight is missing", str(folder))
    tokens = encoder.grid**2 + encoder.keep_class_token
    # The class's default stands in files of towers of any size; another number was written on purpose.
    require(raw, "image_seq_length", (_DEFAULT_TOKENS, tokens), file)
    files = read_processor_files(folder)
    check_processor(files, encoder, config.vision_feature_select_strategy)
    kind, head_bias = text.get("model_type", "llama"), "decoder.lm_head.bias" in shapes
    rows = vocabulary_rows(shapes, str(folder))
    return ModelSpec(
        family="llava",
        name=folder.resolve().name,
        vision=VisionSpec(encoder, MlpProjectorSpec(projector[0]), side, tokens),
        decoder=read_decoder(text, kind, file, vocab_size=rows, tied=tied, head_bias=head_bias),
        preprocess=read_square(files, tower, side),
        prompt=read_prompt({**text, "model_type": kind}, tokenizer, config.image_token_index, file),
        model_type="llava",
        model_class="LlavaForConditionalGeneration",
        licence=tokenizer.licence,
    )


def read_prompt(text: dict[str, Any], tokenizer: TokenizerFacts, configured: int | None, where: str) -> PromptSpec:
    """`vicuna_v1`, Mistral's instructions, or ChatML or Llama 3's headers for a tokenizer that has their tokens.

    Args:
        text: the text configuration.
        tokenizer: what the tokenizer's files say.
        configured: the image token's id in `config.json`.
        where: that file, for messages.

    Raises:
        CheckpointError: the tokenizer and `config.json` disagree on the image token.
    """
    image_token_id = tokenizer.image_token_id(configured, where)
    stops = configured_stops(text)
    if text.get("model_type") == "mistral":
        return PromptSpec(
            chat_template=MISTRAL_TEMPLATE,
            image_token_id=image_token_id,
            bos_token_id=tokenizer.added.get("<s>"),
            stop_token_ids=tokenizer.stop_ids(("</s>",), stops),
        )
    if "<|start_header_id|>" in tokenizer.added:
        return PromptSpec(
            chat_template=LLAMA3_TEMPLATE,
            image_token_id=image_token_id,
            bos_token_id=tokenizer.added.get("<|begin_of_text|>"),
            stop_token_ids=tokenizer.stop_ids(("<|eot_id|>", "<|end_of_text|>"), stops),
        )
    if "<|im_end|>" in tokenizer.added:
        return PromptSpec(
            chat_template=CHATML_TEMPLATE,
            image_token_id=image_token_id,
            stop_token_ids=tokenizer.stop_ids(("<|im_end|>", "<|endoftext|>"), stops),
        )
    return vicuna_prompt(tokenizer, image_token_id, stops)


def vicuna_prompt(tokenizer: TokenizerFacts, image_token_id: int, stops: list[int | None]) -> PromptSpec:
    """`vicuna_v1`; an answer ends with `</s>`, or with `<|endoftext|>` where the tokenizer has no `</s>` (Phi-2's)."""
    end = next((token for token in ("</s>", "<|endoftext|>") if token in tokenizer.added), "</s>")
    return PromptSpec(
        chat_template=VICUNA_TEMPLATE.replace("</s>", end),
        image_token_id=image_token_id,
        bos_token_id=tokenizer.added.get("<s>"),
        stop_token_ids=tokenizer.stop_ids((end,), stops),
        default_system=VICUNA_SYSTEM,
    )


def tower_config(raw: dict[str, Any], where: str) -> dict[str, Any]:
    """`vision_config`; CLIP's absent fields are those of the 336-pixel tower, as in transformers."""
    tower = section(raw, "vision_config", where)
    return {**_TOWER, **tower} if tower.get("model_type", "clip_vision_model") == "clip_vision_model" else tower


def check_processor(files: ProcessorFiles, encoder: VitSpec, strategy: str) -> None:
    """Refuse a processor that would make another number of image tokens.

    Raises:
        CheckpointError: names the field and both values.
    """
    files.agree("patch_size", encoder.patch_size)
    files.agree("vision_feature_select_strategy", strategy)
    files.agree("num_additional_image_tokens", int(encoder.class_token))
    files.agree("image_token", "<image>")
