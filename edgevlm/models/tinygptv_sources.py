"""The four files that make a TinyGPT-V, and `edgevlm-sources.yaml`, which names them.

In: a folder with that file. Out: one list of tensors under the names of the training code, each from the last of the
sources that has it: vision encoder, Q-Former, Phi-2, then the training stage, whose LoRA factors stand under names of
their own. Nothing is read but names and shapes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TypeAlias

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from edgevlm.errors import CheckpointError
from edgevlm.models.checkpoint import Checkpoint, open_checkpoint, open_file
from edgevlm.validation import first_problem

SOURCES_FILE = "edgevlm-sources.yaml"
_MAX_YAML_BYTES = 1 << 16


class Sources(BaseModel):
    """The content of `edgevlm-sources.yaml`. Paths are relative to its folder and stay in it, or absolute.

    Attributes:
        vision: the EVA-ViT-g weights (`eva_vit_g.pth`).
        qformer: the BLIP-2 weights (`blip2_pretrained_flant5xxl.pth`).
        language_model: the Phi-2 folder, with its tokenizer.
        stage: what TinyGPT-V's training wrote (stage 4, or an earlier one).
        prompt_template: by name; None is the family's default.
        image_size: pixels a side: 448 in stage 4, 224 before.
        vision_layers: encoder blocks that run; the file may hold one more.
        vision_heads, qformer_heads: attention heads, which no tensor's shape tells.
        lora_rank, lora_alpha: of the stage's LoRA factors; their product counts alpha / rank times.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    vision: str = Field(min_length=1)
    qformer: str = Field(min_length=1)
    language_model: str = Field(min_length=1)
    stage: str = Field(min_length=1)
    prompt_template: str | None = None
    image_size: int = Field(default=448, gt=0, le=1 << 13)
    vision_layers: int = Field(default=39, gt=0, le=512)
    vision_heads: int = Field(default=16, gt=0, le=1024)
    qformer_heads: int = Field(default=12, gt=0, le=1024)
    lora_rank: int = Field(default=64, gt=0, le=1 << 12)
    lora_alpha: float = Field(default=16, gt=0, allow_inf_nan=False)


@dataclass(frozen=True)
class Piece:
    """One published tensor.

    Attributes:
        name: in its file.
        source: the file, as `edgevlm-sources.yaml` names it.
    """

    name: str
    source: str
    shape: tuple[int, ...]
    checkpoint: Checkpoint

    def tensor(self) -> Tensor:
        """The tensor in its stored dtype, memory-mapped."""
        return self.checkpoint.tensor(self.name)


#: Tensors by the name that the training code gives them; Phi-2's begin with `phi.`.
Pieces: TypeAlias = dict[str, Piece]

#: What the published files hold beside what TinyGPT-V uses: heads of other tasks and the text side of the Q-Former.
_UNUSED = re.compile(
    r"visual_encoder\.(head|norm|fc_norm)\.|visual_encoder\.mask_token$|(t5|opt)_proj\.|Qformer\.cls\.|"
    r"(text|vision)_proj\.|itm_head\.|temp$|Qformer\.bert\.embeddings\.(position_ids|(word|position)_embeddings)|"
    r"Qformer\.bert\.encoder\.layer\.\d+\.(intermediate|output)\.|phi\..*rotary_emb\.inv_freq$"
)
_KNOWN = ("visual_encoder.", "ln_vision.", "Qformer.bert.", "query_tokens", "phi.", "llama_proj.", "llama_proj2.")
#: peft wraps the language model; it names its factors by the adapter since version 0.3.
_WRAPPED = re.compile(r"^llama_model\.(base_model\.model\.)?")
_ADAPTER = re.compile(r"\.lora_([AB])\.default\.weight$")
_BLOCK = re.compile(r"visual_encoder\.blocks\.(\d+)\.")


def read_sources(folder: Path) -> Sources:
    """Read `edgevlm-sources.yaml`.

    Raises:
        CheckpointError: it is not a mapping, or a field is missing, unknown or out of range.
    """
    file = folder / SOURCES_FILE
    try:
        if file.stat().st_size > _MAX_YAML_BYTES:
            raise CheckpointError("the file is too large", str(file))
        loaded = yaml.safe_load(file.read_text(encoding="utf-8"))
        return Sources.model_validate(loaded)
    except ValidationError as error:
        field, problem = first_problem(error)
        raise CheckpointError(
            f"{SOURCES_FILE}: {field}: {problem}", str(file), f"fields: {', '.join(Sources.model_fields)}"
        ) from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise CheckpointError(
            f"{SOURCES_FILE} cannot be read: {str(error).splitlines()[0]}", str(file), "write a YAML mapping"
        ) from error


def path_of(folder: Path, name: str) -> Path:
    """Where a source lies: an absolute path as it is, any other below `folder`.

    Raises:
        CheckpointError: a relative path leaves the folder, or there is nothing.
    """
    relative = PurePosixPath(name)
    if not Path(name).is_absolute() and (".." in relative.parts or "\\" in name or PureWindowsPath(name).drive):
        raise CheckpointError(
            "a relative path leaves the folder", f"{folder / SOURCES_FILE}: {name}", "give an absolute path"
        )
    path = folder / name
    if "\0" in name or not path.exists():
        raise CheckpointError("a source is missing", f"{folder / SOURCES_FILE}: {name!r:.200}", "check its path")
    return path


def gather(folder: Path, sources: Sources) -> Pieces:
    """The tensors of all four sources; where two have one, the later source counts.

    Raises:
        CheckpointError: a source cannot be read or has a tensor that TinyGPT-V does not, or two disagree on a shape.
    """
    opened = (
        (sources.vision, open_file(path_of(folder, sources.vision)), "visual_encoder."),
        (sources.qformer, open_file(path_of(folder, sources.qformer)), ""),
        (sources.language_model, _open_folder(path_of(folder, sources.language_model)), "phi."),
        (sources.stage, open_file(path_of(folder, sources.stage)), ""),
    )
    pieces: Pieces = {}
    for source, checkpoint, prefix in opened:
        for name, piece in _pieces(source, checkpoint, prefix, sources.vision_layers).items():
            earlier = pieces.get(name)
            # Tables of positions for other resolutions are interpolated, so they may differ in length.
            if earlier is not None and earlier.shape != piece.shape and name != "visual_encoder.pos_embed":
                raise CheckpointError(
                    f"two sources disagree: {piece.name} has shape {list(piece.shape)} in {source} and "
                    f"{list(earlier.shape)} in {earlier.source}",
                    str(folder / SOURCES_FILE),
                    "name files of the same model",
                )
            pieces[name] = piece
    return pieces


def _open_folder(path: Path) -> Checkpoint:
    if not path.is_dir():
        raise CheckpointError("the language model is a file, not a folder", str(path), "give the Phi-2 folder")
    return open_checkpoint(path)


def _pieces(source: str, checkpoint: Checkpoint, prefix: str, vision_layers: int) -> Pieces:
    """The tensors of one source that TinyGPT-V uses, by the training code's names."""
    pieces: Pieces = {}
    for published, shape in checkpoint.shapes.items():
        name = published if published.startswith(_KNOWN) else prefix + published
        name = _ADAPTER.sub(r".lora_\1.weight", _WRAPPED.sub("phi.", name))
        block = _BLOCK.match(name)
        if _UNUSED.match(name) or (block and int(block[1]) >= vision_layers):
            continue
        if not name.startswith(_KNOWN):
            raise CheckpointError(
                f"unknown tensor {published}", str(checkpoint.files[published]), "TinyGPT-V has no such tensor"
            )
        if name in pieces:
            raise CheckpointError(
                f"{published} and {pieces[name].name} are the same tensor", str(checkpoint.files[published])
            )
        pieces[name] = Piece(published, source, shape, checkpoint)
    return pieces
