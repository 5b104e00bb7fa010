"""The text side of the CLIP that a model's encoder comes from, where the checkpoint holds it.

In: a checkpoint folder and the encoder's numbers. Out: the text tower, the way of patches into the space that it shares
with them, and its tokenizer. It is found in `text_tower.json` with `text_tower.safetensors` beside the model's own
weights, or as a whole `CLIPModel` with its tokenizer in a subfolder `clip/` or `vision_tower/`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from edgevlm.errors import CheckpointError
from edgevlm.models.checkpoint import Checkpoint, open_checkpoint, open_file, read_json
from edgevlm.models.configs import PublishedConfig, section, validated
from edgevlm.models.tensors import assign, check_names_and_shapes
from edgevlm.models.text_tower import PatchHead, TextTower
from edgevlm.models.tokenizer_files import tokenizer_facts
from edgevlm.models.vit_names import ACTIVATIONS
from edgevlm.question import QuestionReader
from edgevlm.runtimes.base import Float32, Int32
from edgevlm.spec import TextTowerSpec, VisionSpec, VitSpec
from edgevlm.tokenizer import Tokenizer

#: Where a whole CLIP may lie.
FOLDERS = ("clip", "vision_tower")
_CONFIG, _WEIGHTS = "text_tower.json", "text_tower.safetensors"
_BEGIN, _END = "<|startoftext|>", "<|endoftext|>"
_PARTS = {
    "self_attn.": "attention.",
    "layer_norm1.": "norm1.",
    "layer_norm2.": "norm2.",
    "mlp.fc1.": "fc1.",
    "mlp.fc2.": "fc2.",
}
_TENSORS = {
    "text_model.embeddings.token_embedding.weight": "text.embed_tokens.weight",
    "text_model.embeddings.position_embedding.weight": "text.positions",
    "text_model.final_layer_norm.weight": "text.post_norm.weight",
    "text_model.final_layer_norm.bias": "text.post_norm.bias",
    "text_projection.weight": "text.projection.weight",
    "visual_projection.weight": "patches.projection.weight",
}
_NORM = re.compile(r"(?:.*\.)?post_layernorm\.(weight|bias)")


class _Text(PublishedConfig):
    """Fields of a `text_config`; the defaults are CLIP's."""

    vocab_size: int = Field(default=49408, gt=0, le=1 << 24)
    hidden_size: int = Field(default=512, gt=0, le=1 << 16)
    intermediate_size: int = Field(default=2048, gt=0, le=1 << 18)
    num_hidden_layers: int = Field(default=12, gt=0, le=512)
    num_attention_heads: int = Field(default=8, gt=0, le=1024)
    max_position_embeddings: int = Field(default=77, gt=2, le=1 << 16)
    hidden_act: Literal["gelu", "quick_gelu", "gelu_new", "gelu_pytorch_tanh"] = "quick_gelu"
    layer_norm_eps: float = Field(default=1e-5, gt=0, lt=1)
    eos_token_id: int | None = None


class _Clip(PublishedConfig):
    projection_dim: int = Field(default=512, gt=0, le=1 << 16)


@dataclass(frozen=True)
class TextSide:
    """What a CLIP has beside its vision tower.

    Attributes:
        spec: numbers of the text tower.
        text: texts into the shared space, in any float dtype, as the patches' way there.
        patches: features of patches into it.
        tokenizer: the text tower's `tokenizer.json`.
        sources: the files read.
    """

    spec: TextTowerSpec
    text: TextTower
    patches: PatchHead
    tokenizer: Path
    sources: tuple[Path, ...]

    def engine(self) -> TorchText:
        """The text tower in float32, by torch."""
        return TorchText(self.text)

    def reader(self) -> QuestionReader:
        """Questions through that engine."""
        return QuestionReader(self.spec, Tokenizer(self.tokenizer), self.engine())


class TorchText:
    """The text tower as an engine."""

    def __init__(self, tower: TextTower) -> None:
        self._tower = tower

    def encode(self, ids: Int32) -> Float32:
        """Ids `[L]` to a vector `[P]`."""
        weights = {name: value.float() for name, value in self._tower.state_dict().items()}
        with torch.inference_mode():
            inputs = torch.from_numpy(ids.astype(np.int64))[None]
            found: Tensor = torch.func.functional_call(self._tower, weights, (inputs,))
        return found[0].numpy()

    def close(self) -> None:
        """Drop the module."""
        del self._tower


def find_text_side(folder: Path, vision: VisionSpec) -> TextSide | None:
    """The text side in a checkpoint's folder; None where there is none, or the encoder is not a CLIP.

    Raises:
        CheckpointError: it is there, but a tensor is missing or mis-shaped, or a field does not fit.
    """
    encoder = vision.encoder
    if not isinstance(encoder, VitSpec) or not encoder.class_token:
        return None
    if (folder / _CONFIG).is_file():
        beside = open_file(folder / _WEIGHTS).joined(_without_text(open_checkpoint(folder)))
        return _read(folder / _CONFIG, folder, beside, encoder)
    for name in FOLDERS:
        place = folder / name
        if all((place / file).is_file() for file in ("config.json", "tokenizer.json")):
            checkpoint = open_checkpoint(place)
            if "text_projection.weight" in checkpoint.shapes:
                return _read(place / "config.json", place, checkpoint, encoder)
    return None


def _without_text(checkpoint: Checkpoint) -> Checkpoint:
    """The model's own weights, of which the last norm of the vision tower is wanted."""
    norms = {name for name in checkpoint.shapes if _NORM.fullmatch(name)}
    return Checkpoint(
        checkpoint.folder,
        {name: checkpoint.shapes[name] for name in norms},
        {name: checkpoint.files[name] for name in norms},
        {name: value for name, value in checkpoint._pickled.items() if name in norms},
    )


def _read(config: Path, tokenizer: Path, checkpoint: Checkpoint, encoder: VitSpec) -> TextSide:
    raw, where = read_json(config), str(config)
    numbers, clip = validated(_Text, section(raw, "text_config", where), where), validated(_Clip, raw, where)
    if numbers.hidden_size % numbers.num_attention_heads:
        raise CheckpointError("config.json: the text tower's heads do not fit its width", where)
    begin, end = _around(numbers, tokenizer, where)
    spec = TextTowerSpec(
        vocab_size=numbers.vocab_size,
        hidden_size=numbers.hidden_size,
        intermediate_size=numbers.intermediate_size,
        num_hidden_layers=numbers.num_hidden_layers,
        num_attention_heads=numbers.num_attention_heads,
        max_position_embeddings=numbers.max_position_embeddings,
        projection_size=clip.projection_dim,
        end_token_id=end,
        begin_token_id=begin,
        norm_eps=numbers.layer_norm_eps,
        activation=ACTIVATIONS[numbers.hidden_act],
    )
    with torch.device("meta"):
        text, patches = TextTower(spec), PatchHead(encoder.hidden_size, spec.projection_size, encoder.norm_eps)
    expected = {f"text.{name}": tuple(value.shape) for name, value in text.state_dict().items()}
    expected |= {f"patches.{name}": tuple(value.shape) for name, value in patches.state_dict().items()}
    names = {name: published for published in checkpoint.shapes if (name := _ir_name(published)) is not None}
    shapes = {name: checkpoint.shapes[published] for name, published in names.items()}
    check_names_and_shapes(expected, shapes, set(), names, str(checkpoint.folder))
    tensors = {name: checkpoint.tensor(published) for name, published in names.items()}
    assign(text, tensors, "text.")
    assign(patches, tensors, "patches.")
    used = tuple(sorted({checkpoint.files[published] for published in names.values()}))
    return TextSide(spec, text, patches, tokenizer / "tokenizer.json", used)


def _around(numbers: _Text, folder: Path, where: str) -> tuple[int | None, int]:
    """Ids in front of and behind a text: CLIP's own by name, since published configurations are wrong about them.

    Raises:
        CheckpointError: neither the tokenizer nor the configuration names the end.
    """
    added: dict[str, Any] = dict(tokenizer_facts(folder).added)
    if _BEGIN in added and _END in added:
        return added[_BEGIN], added[_END]
    if numbers.eos_token_id is None:
        raise CheckpointError("config.json: the text tower has no eos_token_id", where, "give the published config")
    return None, numbers.eos_token_id


def _ir_name(published: str) -> str | None:
    """A tensor of a CLIP as ours: `text.*`, `patches.*`; None for the vision tower, the logit scale and buffers."""
    if published in _TENSORS:
        return _TENSORS[published]
    if match := _NORM.fullmatch(published):
        return f"patches.post_norm.{match[1]}"
    if published.startswith("text_model.encoder.layers."):
        name = published.removeprefix("text_model.encoder.")
        for theirs, ours in _PARTS.items():
            name = name.replace(theirs, ours)
        return f"text.{name}"
    if published.startswith("text_model.") and not published.endswith("position_ids"):
        return f"text.{published}"
    return None
