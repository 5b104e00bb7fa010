"""VLMs on plain Phi-2: LLaVA-Phi (arXiv 2401.02330), Mipha (arXiv 2403.06199) and Bunny (arXiv 2402.11530).

CLIP or SigLIP, `mlp2x_gelu`, and Phi-2 with separate q/k/v, in the layout of the LLaVA code base. LLaVA-Phi and Mipha
keep tower and projector settings nested in `vision_config`; Bunny's are flat, and take the layer before the last
whatever `config.json` says. The conversation is `vicuna_v1` with Phi-2's end of text.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgevlm.models.configs import section
from edgevlm.models.conversations import VICUNA_SYSTEM, VICUNA_TEMPLATE
from edgevlm.models.llava_original import assemble_original, mlp_name, open_original, read_mlp
from edgevlm.models.text_config import configured_stops
from edgevlm.models.vlm import VlmModel
from edgevlm.spec import PromptSpec

MODEL_TYPES = ("llava_phi", "mipha_phi", "bunny-phi")

_END = "<|endoftext|>"
_BUNNY_LAYER = -2


def load(folder: Path, raw: dict[str, Any]) -> VlmModel:
    """Load a checkpoint; tensors stay memory-mapped.

    Raises:
        CheckpointError: a tensor is missing, unknown or mis-shaped, or the configuration does not fit.
    """
    tower = None
    if raw.get("model_type") == "bunny-phi":
        raw = {**raw, "mm_vision_select_layer": _BUNNY_LAYER}
    else:
        raw, tower = flattened(raw, str(folder / "config.json"))
    original = open_original(folder, raw, tower)
    tokenizer = original.tokenizer
    prompt = PromptSpec(
        chat_template=VICUNA_TEMPLATE.replace("</s>", _END),
        image_token_id=tokenizer.image_token_id(original.config.image_token_index, str(folder / "config.json")),
        stop_token_ids=tokenizer.stop_ids((_END,), configured_stops(raw)),
        default_system=VICUNA_SYSTEM,
    )
    return assemble_original(
        original,
        family="phi_vlm",
        text_kind="phi",
        prompt=prompt,
        projector=lambda shapes: read_mlp(original, shapes),
        projector_name=mlp_name,
    )


def flattened(raw: dict[str, Any], where: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """LLaVA-Phi's and Mipha's configuration with flat fields of the vision side, and the tower's configuration.

    Raises:
        CheckpointError: `vision_config` does not hold objects.
    """
    vision = section(raw, "vision_config", where)
    tower, projector = section(vision, "vision_tower", where), section(vision, "mm_projector", where)
    name = str(tower.get("vision_model_name_or_path", "clip"))
    kind = "siglip_vision_model" if "siglip" in name.lower() else "clip_vision_model"
    fields = {
        "mm_vision_tower": name,
        "mm_vision_select_layer": tower.get("mm_vision_select_layer", -2),
        "mm_vision_select_feature": tower.get("mm_vision_select_feature", "patch"),
        "mm_projector_type": projector.get("mm_projector_type", "linear"),
        "mm_hidden_size": projector.get("mm_hidden_size"),
    }
    return {**raw, **fields}, {**tower, "model_type": kind}
