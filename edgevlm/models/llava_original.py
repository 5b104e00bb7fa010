"""The layout of the LLaVA code base, which LLaVA-1.5's, LLaVA-Phi's, Bunny's and MobileVLM's repositories use.

The text's fields stand at the top of `config.json`, those of the vision side begin with `mm_`. The vision tower is only
named there; its weights are among the others under `model.vision_tower.vision_tower.`, or, since most repositories
leave them out, in a subfolder `vision_tower/` that holds the named CLIP or SigLIP checkpoint.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from edgevlm.errors import CheckpointError
from edgevlm.models.checkpoint import Checkpoint, open_checkpoint, read_json
from edgevlm.models.configs import PublishedConfig, require, section, validated
from edgevlm.models.loading import assemble, decoder_name, named_tensors, used_tensors, vocabulary_rows
from edgevlm.models.processor_files import ProcessorFiles, read_processor_files
from edgevlm.models.square_images import read_square
from edgevlm.models.text_config import read_decoder
from edgevlm.models.tokenizer_files import TokenizerFacts, tokenizer_facts
from edgevlm.models.vit_names import SIGLIP_TYPES, image_size, read_vit, vit_name
from edgevlm.models.vlm import VlmModel
from edgevlm.spec import LinearProjectorSpec, MlpProjectorSpec, ModelSpec, PromptSpec, VisionSpec, VitSpec
from edgevlm.spec.vision import ProjectorSpec

TOWER_FOLDER = "vision_tower"
#: The tower's tensors: among the others (LLaVA-Phi nests them once), or in the tower's own files.
_INSIDE = re.compile(r"model\.vision_tower\.(?:vision_tower\.)?")
_ALONE = ("vision_model.", "embeddings.", "encoder.", "head.", "pre_layrnorm.", "post_layernorm.")
#: Of a whole CLIP or SigLIP checkpoint, what is not the vision tower.
_OTHER_TOWER = ("text_model.", "text_projection.", "visual_projection.", "logit_scale", "logit_bias")

#: Published towers by the last part of their name.
TOWERS: dict[str, dict[str, Any]] = {
    "clip-vit-large-patch14-336": {
        "model_type": "clip_vision_model",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 336,
        "patch_size": 14,
    },
    "siglip-so400m-patch14-384": {
        "model_type": "siglip_vision_model",
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "image_size": 384,
        "patch_size": 14,
    },
}
TOWERS["clip-vit-large-patch14"] = {**TOWERS["clip-vit-large-patch14-336"], "image_size": 224}


class OriginalConfig(PublishedConfig):
    """The fields of the vision side; the defaults are the published code's."""

    mm_vision_tower: str
    mm_hidden_size: int | None = None
    mm_projector_type: str = "linear"
    mm_vision_select_layer: int = -2
    mm_vision_select_feature: Literal["patch", "cls_patch"] = "patch"
    image_aspect_ratio: str | None = None
    image_token_index: int | None = None
    bos_token_id: int | None = Field(default=None, ge=0)


@dataclass(frozen=True)
class Original:
    """An opened folder.

    Attributes:
        folder: where it lies.
        raw: its `config.json`.
        config: the fields of the vision side.
        tower: the vision configuration of the tower.
        encoder: its numbers as the model uses it.
        checkpoint: the tensors of both, under the names they have in their files.
        files: the processor files.
        tokenizer: what the tokenizer's files say.
    """

    folder: Path
    raw: dict[str, Any]
    config: OriginalConfig
    tower: dict[str, Any]
    encoder: VitSpec
    checkpoint: Checkpoint
    files: ProcessorFiles
    tokenizer: TokenizerFacts


def open_original(folder: Path, raw: dict[str, Any], tower: dict[str, Any] | None = None) -> Original:
    """Open a folder of this layout, with the tower inside or in `vision_tower/`.

    Args:
        folder: of the checkpoint.
        raw: its `config.json`.
        tower: the tower's configuration where `config.json` holds it.

    Raises:
        CheckpointError: the tower is neither here nor there, or the configuration asks for what is not supported.
    """
    where = str(folder / "config.json")
    raw = {**raw, "mm_vision_tower": raw.get("mm_vision_tower") or raw.get("vision_tower")}
    for field, allowed in (
        ("mm_use_im_start_end", (False,)),
        ("mm_patch_merge_type", ("flat",)),
        ("image_aspect_ratio", ("pad", "square")),
        ("use_s2", (False,)),
        ("s2", (False,)),
        ("mm_resampler_type", ()),
    ):
        require(raw, field, allowed, where)
    config = validated(OriginalConfig, raw, where)
    tower_folder = folder / TOWER_FOLDER
    if tower is None:
        tower = _tower_config(tower_folder, config.mm_vision_tower, where)
    require({"mm_hidden_size": config.mm_hidden_size}, "mm_hidden_size", (tower.get("hidden_size"),), where)
    layer = config.mm_vision_select_layer
    encoder = read_vit(tower, where, feature_layer=layer, class_token=config.mm_vision_select_feature == "cls_patch")
    files = read_processor_files(folder)
    if not files.image and tower_folder.is_dir():
        files = read_processor_files(tower_folder)
    checkpoint = _with_tower(open_checkpoint(folder), tower_folder, config.mm_vision_tower)
    return Original(folder, raw, config, tower, encoder, checkpoint, files, tokenizer_facts(folder))


def assemble_original(
    original: Original,
    *,
    family: str,
    text_kind: str,
    prompt: PromptSpec,
    projector: Callable[[dict[str, tuple[int, ...]]], tuple[ProjectorSpec, int]],
    projector_name: Callable[[str], str],
) -> VlmModel:
    """The model of an opened folder.

    Args:
        original: the folder.
        family: for people.
        text_kind: `llama`, `qwen2` or `phi`.
        prompt: the conversation.
        projector: from shapes by IR name to the projector and the tokens that leave it.
        projector_name: a name below `model.mm_projector.` as the IR's below `vision.projector.`.

    Raises:
        CheckpointError: a tensor is missing, unknown or mis-shaped, or the configuration does not fit.
    """
    folder, checkpoint, where = original.folder, original.checkpoint, str(original.folder / "config.json")
    names = named_tensors(
        checkpoint.shapes, lambda name: original_name(name, original.encoder, projector_name), str(folder)
    )
    used = used_tensors(checkpoint, names)
    side = image_size(original.tower, where)
    projector_spec, tokens = projector(used.shapes)
    spec = ModelSpec(
        family=family,
        name=folder.resolve().name,
        vision=VisionSpec(original.encoder, projector_spec, side, tokens),
        decoder=read_decoder(
            original.raw, text_kind, where, vocab_size=vocabulary_rows(used.shapes, str(folder)), tied=used.tied
        ),
        preprocess=read_square(original.files, original.tower, side, aspect_ratio=original.config.image_aspect_ratio),
        prompt=prompt,
        model_type="llava",
        model_class="LlavaForConditionalGeneration",
        licence=original.tokenizer.licence,
    )
    return assemble(spec, checkpoint, used, original.tokenizer)


def mlp_name(name: str) -> str:
    """Of `mlp2x_gelu` `0.weight`, of `linear` `weight`, as the IR's.

    Raises:
        CheckpointError: neither has such a tensor.
    """
    match = re.fullmatch(r"(?:([02])\.)?(weight|bias)", name)
    if match is None:
        raise CheckpointError(f"unknown tensor model.mm_projector.{name}", "the projector", "is this mlp2x_gelu?")
    return f"linear.{match[2]}" if match[1] is None else f"linear_{int(match[1]) // 2 + 1}.{match[2]}"


def read_mlp(original: Original, shapes: dict[str, tuple[int, ...]]) -> tuple[ProjectorSpec, int]:
    """`mlp2x_gelu` or `linear`, and a token for each feature.

    Raises:
        CheckpointError: another projector, or its tensor is missing.
    """
    where = str(original.folder / "config.json")
    kind = original.config.mm_projector_type
    require({"mm_projector_type": kind}, "mm_projector_type", ("mlp2x_gelu", "linear"), where)
    tokens = original.encoder.grid**2 + original.encoder.keep_class_token
    if kind == "linear":
        return LinearProjectorSpec(bias=True), tokens
    first = shapes.get("vision.projector.linear_1.weight")
    if first is None:
        raise CheckpointError("tensor model.mm_projector.0.weight is missing", str(original.folder))
    return MlpProjectorSpec(first[0]), tokens


def original_name(published: str, encoder: VitSpec, projector_name: Callable[[str], str]) -> str | None:
    """A tensor name as the IR's; None for what the model does not use.

    Raises:
        CheckpointError: this layout has no such tensor.
    """
    if published.startswith(_OTHER_TOWER):
        return None
    if _INSIDE.match(published) or published.startswith(_ALONE):
        inner = vit_name(_INSIDE.sub("", published, count=1), encoder)
        return None if inner is None else f"vision.encoder.{inner}"
    if match := re.fullmatch(r"model\.mm_projector\.(.+)", published):
        return f"vision.projector.{projector_name(match[1])}"
    if published.startswith("lm_head."):
        return f"decoder.{published}"
    return decoder_name(published.removeprefix("model."))


def _tower_config(folder: Path, name: str, where: str) -> dict[str, Any]:
    """The vision configuration of the tower: of its folder, else the published one of that name."""
    file = folder / "config.json"
    if file.is_file():
        raw = read_json(file)
        nested = section(raw, "vision_config", str(file))
        kind = "siglip_vision_model" if raw.get("model_type") in SIGLIP_TYPES else "clip_vision_model"
        return {"model_type": kind, **nested} if nested else raw
    tower = TOWERS.get(name.rstrip("/").rsplit("/", 1)[-1])
    if tower is None:
        known = ", ".join(TOWERS)
        raise CheckpointError(
            f"config.json: mm_vision_tower {name!r:.80} is not known here",
            where,
            f"put the tower with its config.json into a subfolder {TOWER_FOLDER}/ (known by name: {known})",
        )
    return tower


def _with_tower(checkpoint: Checkpoint, folder: Path, name: str) -> Checkpoint:
    """The checkpoint and, where it lacks the tower, that of the subfolder."""
    if any(_INSIDE.match(published) for published in checkpoint.shapes):
        return checkpoint
    if not folder.is_dir():
        raise CheckpointError(
            f"the weights of the vision tower {name!r:.80} are not in this checkpoint",
            str(checkpoint.folder),
            f"download {name} into a subfolder {TOWER_FOLDER}/ of this folder",
        )
    return checkpoint.joined(open_checkpoint(folder))
