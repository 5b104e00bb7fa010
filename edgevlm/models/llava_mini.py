"""LLaVA-Mini (arXiv 2501.03895): CLIP, a compressor to C x C tokens, pre-fusion layers, and a Llama or Qwen2 decoder.

In: the published folder, whose shards may differ in dtype: CLIP inside, or beside it where `mm_vision_tower` names a
folder. Out: a `VlmModel` with a fusion. All sizes of the vision side are read from the tensors, since `config.json`
only names the tower; what tensors do not tell is as in the published sizes of CLIP, unless the tower's folder says
otherwise. The conversation is told by the tokenizer's special tokens.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from edgevlm.errors import CheckpointError
from edgevlm.models.checkpoint import Checkpoint, open_checkpoint, read_json
from edgevlm.models.configs import PublishedConfig, require, section, validated
from edgevlm.models.conversations import LLAMA31_SYSTEM, LLAMA31_TEMPLATE, VICUNA_SYSTEM, VICUNA_TEMPLATE
from edgevlm.models.decoder import Decoder
from edgevlm.models.fastvlm import CHAT_TEMPLATE as CHATML_TEMPLATE
from edgevlm.models.fusion import Fusion
from edgevlm.models.loading import HEAD, decoder_name, is_tied, named_tensors, vocabulary_rows
from edgevlm.models.processor_files import read_processor_files
from edgevlm.models.square_images import read_square
from edgevlm.models.tensors import assign, check_names_and_shapes
from edgevlm.models.text_config import configured_stops, read_decoder
from edgevlm.models.tokenizer_files import TokenizerFacts, tokenizer_facts
from edgevlm.models.vit_names import read_vit, vit_name
from edgevlm.models.vlm import VisionModel, VlmModel, build_vision
from edgevlm.spec import (
    CompressedVitSpec,
    FusionSpec,
    MlpProjectorSpec,
    ModelSpec,
    PreprocessSpec,
    PromptSpec,
    StackedTiles,
    VisionSpec,
    VitSpec,
)

MODEL_TYPES = ("llava_mini_llama", "llava_mini_qwen", "llava_mini")

_TOWER = "model.vision_tower.vision_tower."
_COMPRESSOR = "vision.encoder.compressor."
#: Channels of one of CLIP's attention heads, in every published size.
_CLIP_HEAD = 64
_COMPRESSOR_HEADS = 8


class _Config(PublishedConfig):
    """The fields beside the decoder's; the defaults are the published code's."""

    compressor_size: int | None = Field(default=None, gt=0, le=64)
    prefusion_layer_num: int | None = Field(default=None, gt=0, le=64)
    mm_vision_tower: str | None = None
    mm_hidden_size: int | None = None
    mm_vision_select_layer: int = Field(default=-2, ge=-512, le=-1)
    bos_token_id: int | None = None
    image_token_index: int | None = None


class _Tower(PublishedConfig):
    """What the tensors of a CLIP do not tell."""

    num_attention_heads: int | None = Field(default=None, gt=0, le=1024)


@dataclass(frozen=True)
class _Tensors:
    """Shapes by published name, and where each tensor is: a checkpoint and the name it has there.

    `tower` is the CLIP's `config.json`, where it is in a folder of its own.
    """

    shapes: dict[str, tuple[int, ...]]
    places: dict[str, tuple[Checkpoint, str]]
    tower: dict[str, Any]

    def tensor(self, name: str) -> Tensor:
        checkpoint, stored = self.places[name]
        return checkpoint.tensor(stored)


def load(folder: Path, raw: dict[str, Any]) -> VlmModel:
    """Load a checkpoint; tensors stay memory-mapped, in the dtypes they have.

    Raises:
        CheckpointError: a tensor is missing, unknown or mis-shaped, or the configuration does not fit.
    """
    tensors = _open(folder, raw)
    tokenizer = tokenizer_facts(folder)
    layers = _tower_layers(tensors.shapes, str(folder))
    config = read_config(raw, str(folder / "config.json"))
    taken = layers + 1 + config.mm_vision_select_layer
    names = named_tensors(tensors.shapes, lambda name: ir_name(name, taken), str(folder))
    shapes = {name: tensors.shapes[published] for name, published in names.items()}
    tied = HEAD not in names or is_tied(tensors.places[names[HEAD]][0], names)
    if tied:
        names.pop(HEAD, None)
        shapes.pop(HEAD, None)
    spec = read_spec(folder, raw, shapes, tied=tied, layers=layers, tokenizer=tokenizer, tower=tensors.tower)
    vision, fusion, decoder = build_checked(spec, shapes, names, str(folder))
    values = {name: tensors.tensor(published) for name, published in names.items()}
    _split_projections(values)
    assign(vision, values, "vision.")
    assign(fusion, values, "fusion.")
    assign(decoder, values, "decoder.")
    sources = sorted({source for checkpoint, _ in tensors.places.values() for source in checkpoint.sources})
    return VlmModel(spec, vision, decoder, tokenizer.files, tuple(sources), fusion=fusion)


def ir_name(name: str, layers: int) -> str | None:
    """A published tensor name as the IR's; None for what the model does not use.

    Args:
        name: in the checkpoint.
        layers: of the vision tower that run; what lies behind them is dropped.

    Raises:
        CheckpointError: LLaVA-Mini has no such tensor.
    """
    if name.startswith(_TOWER):
        short = vit_name(name.removeprefix(_TOWER), _tower_spec(layers))
        return None if short is None else f"vision.encoder.vit.{short}"
    if match := re.fullmatch(r"model\.compressor\.(?:attn\.)?(.+)", name):
        return _COMPRESSOR + match[1]
    if match := re.fullmatch(r"model\.mm_projector\.([02])\.(weight|bias)", name):
        return f"vision.projector.linear_{int(match[1]) // 2 + 1}.{match[2]}"
    if name.endswith("rotary_emb.inv_freq"):
        return None
    if match := re.fullmatch(r"model\.prefusion_layers\.(.+)", name):
        return f"fusion.layers.{match[1]}"
    if name.startswith("lm_head."):
        return f"decoder.{name}"
    return decoder_name(name.removeprefix("model."))


def read_config(raw: dict[str, Any], where: str) -> _Config:
    """Validate the fields that are LLaVA-Mini's own.

    Raises:
        CheckpointError: a field has a value that does not fit, or asks for what is not supported.
    """
    supported: dict[str, tuple[Any, ...]] = {
        "mm_projector_type": ("mlp2x_gelu",),
        "mm_vision_select_feature": ("patch",),
        "mm_patch_merge_type": ("flat",),
        "mm_resampler_type": (),
        "mm_use_im_start_end": (False,),
        "image_aspect_ratio": ("square", "pad"),
        "resolution_ratio": (1, 2),
    }
    for field, allowed in supported.items():
        require(raw, field, allowed, where)
    return validated(_Config, raw, where)


def read_spec(
    folder: Path,
    raw: dict[str, Any],
    shapes: dict[str, tuple[int, ...]],
    *,
    tied: bool,
    layers: int,
    tokenizer: TokenizerFacts,
    tower: dict[str, Any] | None = None,
) -> ModelSpec:
    """The spec from configuration, tensor shapes (IR names) and tokenizer.

    Args:
        folder: of the checkpoint.
        raw: its `config.json`.
        shapes: shape by IR name.
        tied: the head is the embedding, by the data.
        layers: of the vision tower as published.
        tokenizer: what stands beside the weights.
        tower: the CLIP's own `config.json`, where it has one.

    Raises:
        CheckpointError: a field or a shape does not fit, or two contradict each other.
    """
    where = str(folder / "config.json")
    config = read_config(raw, where)
    ratio = raw.get("resolution_ratio") or 1
    encoder = _read_encoder(shapes, config, ratio, layers, where, tower or {})
    size = encoder.vit.grid * encoder.vit.patch_size
    fusion_layers = len({name.split(".")[2] for name in shapes if name.startswith("fusion.layers.")})
    _agree("prefusion_layer_num", config.prefusion_layer_num, fusion_layers, where)
    if not fusion_layers:
        raise CheckpointError("the tensors of the pre-fusion are missing", str(folder), "is this LLaVA-Mini?")
    kind = "qwen2" if "decoder.layers.0.self_attn.q_proj.bias" in shapes else "llama"
    rows = vocabulary_rows(shapes, str(folder))
    projector = shapes.get("vision.projector.linear_1.weight")
    if projector is None:
        raise CheckpointError("tensor model.mm_projector.0.weight is missing", str(folder), "download it again")
    vision = VisionSpec(encoder, MlpProjectorSpec(projector[0]), size, 0)
    return ModelSpec(
        family="llava_mini",
        name=folder.resolve().name,
        vision=VisionSpec(encoder, vision.projector, size, vision.tokens_at(size)),
        decoder=read_decoder(raw, kind, where, vocab_size=rows, tied=tied),
        preprocess=_read_preprocess(folder, size, ratio, raw.get("image_aspect_ratio")),
        prompt=_prompt(config, raw, tokenizer, where),
        fusion=FusionSpec(fusion_layers, encoder.queries),
        model_type=str(raw.get("model_type")),
        model_class="LlavaMiniQwenForCausalLM" if kind == "qwen2" else "LlavaMiniLlamaForCausalLM",
        licence=tokenizer.licence,
    )


def build_checked(
    spec: ModelSpec, shapes: dict[str, tuple[int, ...]], names: dict[str, str], where: str
) -> tuple[VisionModel, Fusion, Decoder]:
    """Modules on the meta device, once every tensor's name and shape (by IR name) has been found to fit them.

    Raises:
        CheckpointError: a tensor is missing, unknown or mis-shaped.
    """
    assert spec.fusion is not None
    with torch.device("meta"):
        vision, fusion, decoder = build_vision(spec), Fusion(spec.fusion, spec.decoder), Decoder(spec.decoder)
    modules = {"vision": vision, "fusion": fusion, "decoder": decoder}
    expected = {f"{part}.{name}": tuple(v.shape) for part, m in modules.items() for name, v in m.state_dict().items()}
    for kind in ("weight", "bias"):
        rows, *columns = expected[f"{_COMPRESSOR}q_proj.{kind}"]
        for projection in ("q_proj", "k_proj", "v_proj"):
            del expected[f"{_COMPRESSOR}{projection}.{kind}"]
        expected[f"{_COMPRESSOR}in_proj_{kind}"] = (3 * rows, *columns)
    check_names_and_shapes(expected, shapes, set(), names, where)
    return vision, fusion, decoder


def _split_projections(tensors: dict[str, Tensor]) -> None:
    """The compressor's queries, keys and values are stored as one matrix, one below the other."""
    for kind in ("weight", "bias"):
        joined = tensors.pop(f"{_COMPRESSOR}in_proj_{kind}")
        for projection, part in zip(("q_proj", "k_proj", "v_proj"), joined.chunk(3), strict=True):
            tensors[f"{_COMPRESSOR}{projection}.{kind}"] = part


def _open(folder: Path, raw: dict[str, Any]) -> _Tensors:
    """The checkpoint's tensors, and those of the CLIP beside it where it holds none."""
    checkpoint = open_checkpoint(folder)
    places = {name: (checkpoint, name) for name in checkpoint.shapes}
    shapes, described = dict(checkpoint.shapes), {}
    if not any(name.startswith(_TOWER) for name in shapes):
        named = str(raw.get("mm_vision_tower"))
        beside = next((path for path in (folder / named, Path(named)) if (path / "config.json").is_file()), None)
        if beside is None:
            raise CheckpointError(
                f"the checkpoint holds no vision tower, and there is no folder {named!r:.80}",
                str(folder),
                "download that CLIP and put its folder at this path inside the checkpoint's",
            )
        tower, described = open_checkpoint(beside), read_json(beside / "config.json")
        for name in tower.shapes:
            if name.startswith("vision_model."):
                places[_TOWER + name], shapes[_TOWER + name] = (tower, name), tower.shapes[name]
    return _Tensors(shapes, places, described)


def _tower_layers(shapes: dict[str, tuple[int, ...]], where: str) -> int:
    """Layers of the vision tower as published."""
    pattern = re.compile(re.escape(_TOWER) + r"vision_model\.encoder\.layers\.(\d+)\.")
    found = {int(match[1]) for name in shapes if (match := pattern.match(name))}
    if not found:
        raise CheckpointError("the tensors of the vision tower are missing", where, "is this LLaVA-Mini?")
    return max(found) + 1


def _tower_spec(layers: int) -> VitSpec:
    """As much of a CLIP tower's spec as naming its tensors needs."""
    return VitSpec(0, 0, layers, 1, 1, 1, 1e-5, class_token=True)


def _read_encoder(
    shapes: dict[str, tuple[int, ...]],
    config: _Config,
    ratio: int,
    layers: int,
    where: str,
    described: dict[str, Any],
) -> CompressedVitSpec:
    def shape(name: str) -> tuple[int, ...]:
        found = shapes.get(f"vision.encoder.{name}")
        if found is None:
            raise CheckpointError(f"tensor {name} of the vision side is missing", where, "download it again")
        return found

    rows, width = shape("vit.positions")
    queries = shape("compressor.query")[0]
    grid, query_grid = math.isqrt(rows - 1), math.isqrt(queries)
    own = section(described, "vision_config", where) or described
    heads = validated(_Tower, own, where).num_attention_heads or width / _CLIP_HEAD
    if grid**2 != rows - 1 or query_grid**2 != queries or heads != int(heads):
        raise CheckpointError(
            f"{rows - 1} patches, {queries} queries and {width} channels are not CLIP's and a square of queries", where
        )
    _agree("compressor_size", config.compressor_size, query_grid, where)
    _agree("mm_hidden_size", config.mm_hidden_size, width, where)
    patch = shape("vit.patch.weight")[-1]
    tower = {
        "model_type": "clip_vision_model",
        "hidden_size": width,
        "intermediate_size": shape("vit.layers.0.fc1.weight")[0],
        "num_hidden_layers": layers,
        "num_attention_heads": int(heads),
        "image_size": grid * patch,
        "patch_size": patch,
    } | {name: own[name] for name in ("hidden_act", "layer_norm_eps") if name in own}
    vit = read_vit(tower, where, feature_layer=config.mm_vision_select_layer)
    return CompressedVitSpec(vit, query_grid, _COMPRESSOR_HEADS, split=ratio)


def _agree(field: str, configured: int | None, found: int, where: str) -> None:
    if configured is not None and configured != found:
        raise CheckpointError(
            f"config.json: {field} is {configured}, but the tensors have {found}", where, "give the published config"
        )


def _read_preprocess(folder: Path, size: int, ratio: int, aspect_ratio: str | None) -> PreprocessSpec:
    tower = {"model_type": "clip_vision_model"}
    square = read_square(read_processor_files(folder), tower, size, aspect_ratio=aspect_ratio)
    return replace(square, tiles=StackedTiles(ratio) if ratio > 1 else None)


def _prompt(config: _Config, raw: dict[str, Any], tokenizer: TokenizerFacts, where: str) -> PromptSpec:
    """The conversation that the tokenizer was made for: Llama 3.1's, ChatML's (Qwen2), else Vicuna's."""
    template, system, bos = VICUNA_TEMPLATE, VICUNA_SYSTEM, config.bos_token_id
    if "<|start_header_id|>" in tokenizer.added:
        template, system, bos = LLAMA31_TEMPLATE, LLAMA31_SYSTEM, None
    elif "<|im_start|>" in tokenizer.added:
        template, system, bos = CHATML_TEMPLATE, "You are a helpful assistant.", None
    ends = ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>", "<|im_end|>", "<|endoftext|>", "</s>")
    return PromptSpec(
        chat_template=template,
        image_token_id=tokenizer.image_token_id(config.image_token_index, where),
        bos_token_id=bos,
        stop_token_ids=tokenizer.stop_ids(ends, configured_stops(raw)),
        default_system=system,
        # The published code finds features for one placeholder; a video is one as well.
        max_images=1,
    )
