"""MobileVLM (arXiv 2312.16886) and its second version (arXiv 2402.03766): CLIP, a light projector, and MobileLLaMA.

The layout is that of the LLaVA code base; what differs is the projector (`ldpnet`, `ldpnetv2`), which makes a quarter
as many tokens. The conversation is `vicuna_v1`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from edgevlm.errors import CheckpointError
from edgevlm.models.configs import require
from edgevlm.models.llava import vicuna_prompt
from edgevlm.models.llava_original import Original, assemble_original, mlp_name, open_original, read_mlp
from edgevlm.models.text_config import configured_stops
from edgevlm.models.vlm import VlmModel
from edgevlm.spec import LdpSpec
from edgevlm.spec.vision import ProjectorSpec

MODEL_TYPES = ("mobilevlm", "mobile_llama")

_LINEAR = {"model.mlp.1": "linear_1", "model.mlp.3": "linear_2", "mlp.mlp.0": "linear_1", "mlp.mlp.2": "linear_2"}
_BLOCK = {
    "0.0": "depthwise",
    "0.1": "norm1",
    "1.fc1": "squeeze",
    "1.fc2": "expand",
    "2.0": "pointwise",
    "2.1": "norm2",
}


def load(folder: Path, raw: dict[str, Any]) -> VlmModel:
    """Load a MobileVLM checkpoint; tensors stay memory-mapped.

    Raises:
        CheckpointError: a tensor is missing, unknown or mis-shaped, or the configuration does not fit.
    """
    require(raw, "vision_tower_type", ("clip",), str(folder / "config.json"))
    original = open_original(folder, raw)
    tokenizer = original.tokenizer
    image_token_id = tokenizer.image_token_id(original.config.image_token_index, str(folder / "config.json"))
    return assemble_original(
        original,
        family="mobilevlm",
        text_kind="llama",
        prompt=vicuna_prompt(tokenizer, image_token_id, configured_stops(raw)),
        projector=lambda shapes: read_projector(original, shapes),
        projector_name=projector_name,
    )


def read_projector(original: Original, shapes: dict[str, tuple[int, ...]]) -> tuple[ProjectorSpec, int]:
    """The projector and the tokens that leave it.

    Raises:
        CheckpointError: another projector, or features that are not a square map.
    """
    where = str(original.folder / "config.json")
    kind = original.config.mm_projector_type
    if kind in ("mlp2x_gelu", "linear"):
        return read_mlp(original, shapes)
    require({"mm_projector_type": kind}, "mm_projector_type", ("ldpnet", "ldpnetv2", "mlp2x_gelu", "linear"), where)
    if original.encoder.keep_class_token:
        raise CheckpointError("config.json: mm_vision_select_feature 'cls_patch' is no square map", where)
    if kind == "ldpnetv2":
        spec = LdpSpec(2)
    else:
        squeeze = shapes.get("vision.projector.blocks.0.squeeze.weight")
        if squeeze is None:
            raise CheckpointError("tensor model.mm_projector.model.mb_block.1.block.1.fc1.weight is missing", where)
        spec = LdpSpec(1, squeeze_channels=squeeze[0])
    return spec, spec.tokens(original.encoder.grid)


def projector_name(name: str) -> str:
    """A name below `model.mm_projector.`, of either version, as the IR's.

    Raises:
        CheckpointError: neither has such a tensor.
    """
    stem, _, kind = name.rpartition(".")
    if stem in _LINEAR:
        return f"{_LINEAR[stem]}.{kind}"
    if stem == "peg.peg.0":
        return f"position.{kind}"
    match = re.fullmatch(r"model\.mb_block\.([12])\.block\.(.+)", stem)
    if match and match[2] in _BLOCK:
        return f"blocks.{int(match[1]) - 1}.{_BLOCK[match[2]]}.{kind}"
    return mlp_name(name)
