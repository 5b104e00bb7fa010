"""Names, shapes and moments of the tensors of the LLaVA class's synthetic checkpoints, in transformers' layout.

A tensor's moments follow from its role, so that activations neither vanish nor explode.
"""

import math
import re

import torch

from edgevlm.models.decoder import Decoder
from edgevlm.models.projector import build_projector
from edgevlm.models.vlm import VisionModel, build_encoder
from edgevlm.spec import VitSpec
from edgevlm.zoo.random_weights import AFTER_GELU, ROW_LEVEL
from edgevlm.zoo.synth_llava_sizes import Kind, LlavaSynth

#: The IR's names as published ones: of a tower's part, then of a part of a layer.
_CLIP_NAMES = {
    "class_token": "embeddings.class_embedding",
    "positions": "embeddings.position_embedding.weight",
    "patch": "embeddings.patch_embedding",
    "pre_norm": "pre_layrnorm",
    "post_norm": "post_layernorm",
    "layer": "encoder.layers",
    "attention.q_proj": "self_attn.q_proj",
    "attention.k_proj": "self_attn.k_proj",
    "attention.v_proj": "self_attn.v_proj",
    "attention.out_proj": "self_attn.out_proj",
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
}
_INTERN_NAMES = {
    "class_token": "embeddings.cls_token",
    "positions": "embeddings.position_embeddings",
    "patch": "embeddings.patch_embeddings.projection",
    "layer": "encoder.layer",
    "attention.q_proj": "attention.q_proj",
    "attention.k_proj": "attention.k_proj",
    "attention.v_proj": "attention.v_proj",
    "attention.out_proj": "attention.projection_layer",
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
    "scale1": "lambda_1",
    "scale2": "lambda_2",
}
_PROJECTOR_NAMES = {"norm": "layer_norm", "linear_1": "linear_1", "linear_2": "linear_2"}


def layout(spec: LlavaSynth) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The IR's name and the shape of each tensor by its published name, in file order."""
    with torch.device("meta"):
        projector = build_projector(spec.vision, spec.decoder.hidden_size)
        vision = VisionModel(build_encoder(spec.vision.encoder), projector)
        decoder = Decoder(spec.decoder)
    found: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name, value in vision.state_dict().items():
        published = _vision_name(name, spec.kind)
        shape = tuple(value.shape)
        if spec.kind == "internvl" and name.endswith(("class_token", "positions")):
            shape = (1,) * (3 - len(shape)) + shape
        found[published] = (f"vision.{name}", shape)
    prefix = "model.text_model." if spec.kind == "smolvlm" else "model.language_model."
    for name, value in decoder.state_dict().items():
        published = name if name.startswith("lm_head.") else prefix + name
        found[published] = (f"decoder.{name}", tuple(value.shape))
    if spec.kind == "llava_onevision":
        found["model.image_newline"] = ("image_newline", (spec.decoder.hidden_size,))
    return found


def _vision_name(name: str, kind: Kind) -> str:
    part, _, rest = name.partition(".")
    if part == "projector":
        if kind == "smolvlm":
            return "model.connector.modality_projection.proj.weight"
        stem, _, leaf = rest.partition(".")
        return f"model.multi_modal_projector.{_PROJECTOR_NAMES[stem]}.{leaf}"
    names = _INTERN_NAMES if kind == "internvl" else _CLIP_NAMES
    prefix = "model.vision_model." if kind == "smolvlm" else "model.vision_tower."
    if match := re.fullmatch(r"layers\.(\d+)\.(.+)", rest):
        return f"{prefix}{names['layer']}.{match[1]}.{_renamed(match[2], names)}"
    return prefix + _renamed(rest, names)


def _renamed(name: str, names: dict[str, str]) -> str:
    if name in names:
        return names[name]
    stem, _, leaf = name.rpartition(".")
    return f"{names[stem]}.{leaf}"


def moments(name: str, shape: tuple[int, ...], spec: LlavaSynth) -> tuple[float, float]:
    """Mean and standard deviation of a tensor (IR name) that keep activations near one second moment throughout."""
    encoder = spec.vision.encoder
    assert isinstance(encoder, VitSpec)
    if re.search(r"norm\d?\.weight$|layernorm\.weight$", name):
        return 1.0, 0.02
    if name.endswith(("scale1", "scale2")):
        return 0.2, 0.01
    if name.endswith("bias"):
        return 0.0, 0.01
    if name.endswith(("embed_tokens.weight", "lm_head.weight", "image_newline")):
        return 0.0, math.sqrt(ROW_LEVEL)
    if name.endswith(("positions", "class_token")):
        return 0.0, 0.3
    gain = 1.0
    if name.startswith("vision.encoder.layers") and name.endswith(("out_proj.weight", "fc2.weight")):
        gain = (AFTER_GELU if "fc2" in name else 1.0) / (2 * encoder.num_hidden_layers)
    elif name.endswith(("projector.linear_2.weight", "projector.linear.weight")):
        gain = (AFTER_GELU if "linear_2" in name else 1.0) * ROW_LEVEL
    elif name.endswith(("o_proj.weight", "down_proj.weight")):
        gain = ROW_LEVEL / (2 * spec.decoder.num_hidden_layers)
    return 0.0, math.sqrt(gain / math.prod(shape[1:]))
