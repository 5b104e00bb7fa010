"""Where the tensors of an InternVL come from: two published layouts, and names for what is in neither.

In: the published tensor names. Out: a `Source` by name in the IR. The original layout holds q, k and v of a layer in
one; both hold the class token and the positions behind axes of length one.
"""

from __future__ import annotations

import re

from edgevlm.errors import CheckpointError
from edgevlm.models.loading import HEAD, decoder_name
from edgevlm.models.tensor_source import Source

_ENCODER = {
    "embeddings.cls_token": "class_token",
    "embeddings.class_embedding": "class_token",
    "embeddings.position_embeddings": "positions",
    "embeddings.position_embedding": "positions",
    "embeddings.patch_embeddings.projection.weight": "patch.weight",
    "embeddings.patch_embeddings.projection.bias": "patch.bias",
    "embeddings.patch_embedding.weight": "patch.weight",
    "embeddings.patch_embedding.bias": "patch.bias",
}
_LAYER = {
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.q_proj": "attention.q_proj",
    "attention.k_proj": "attention.k_proj",
    "attention.v_proj": "attention.v_proj",
    "attention.projection_layer": "attention.out_proj",
    "norm1": "norm1",
    "norm2": "norm2",
    "attn.proj": "attention.out_proj",
    "mlp.fc1": "fc1",
    "mlp.fc2": "fc2",
}
_FACTORS = {"lambda_1": "scale1", "lambda_2": "scale2", "ls1": "scale1", "ls2": "scale2"}
_PROJECTOR = {
    "multi_modal_projector.layer_norm": "norm",
    "multi_modal_projector.linear_1": "linear_1",
    "multi_modal_projector.linear_2": "linear_2",
    "mlp1.0": "norm",
    "mlp1.1": "linear_1",
    "mlp1.3": "linear_2",
}
#: Axes of length one before the shape of the IR.
_LEADING = {"vision.encoder.class_token": 2, "vision.encoder.positions": 1}


def tensor_sources(shapes: dict[str, tuple[int, ...]]) -> dict[str, Source]:
    """The source of every tensor of the IR, by its name there.

    Raises:
        CheckpointError: InternVL has no such tensor, or two are the same layer.
    """
    sources: dict[str, Source] = {}
    for published in shapes:
        for name, source in _sources_of(published):
            if name in sources:
                raise CheckpointError(
                    f"tensors {sources[name].published} and {published} are the same layer", "the checkpoint"
                )
            sources[name] = source
    return sources


def _sources_of(published: str) -> list[tuple[str, Source]]:
    """The tensors of the IR that a published one holds."""
    name = published.removeprefix("model.")
    if match := re.fullmatch(r"(?:vision_tower|vision_model)\.encoder\.layers?\.(\d+)\.attn\.qkv\.(\w+)", name):
        prefix = f"vision.encoder.layers.{match[1]}.attention"
        return [(f"{prefix}.{part}_proj.{match[2]}", Source(published, third)) for third, part in enumerate("qkv")]
    if name.endswith("rotary_emb.inv_freq"):
        return []
    ir_name = _ir_name(name, published)
    return [(ir_name, Source(published, leading=_LEADING.get(ir_name, 0)))]


def _ir_name(name: str, published: str) -> str:
    """A published name without `model.` as `vision.*` or `decoder.*` of the IR."""
    if name in ("lm_head.weight", "language_model.lm_head.weight"):
        return HEAD
    if name.startswith("language_model."):
        decoder = decoder_name(name.removeprefix("language_model.").removeprefix("model."))
        assert decoder is not None
        return decoder
    if match := re.fullmatch(r"(?:vision_tower|vision_model)\.(.+)", name):
        inner = _encoder_name(match[1])
        if inner is not None:
            return f"vision.encoder.{inner}"
    stem, _, kind = name.rpartition(".")
    if stem in _PROJECTOR:
        return f"vision.projector.{_PROJECTOR[stem]}.{kind}"
    raise CheckpointError(f"unknown tensor {published}", "the checkpoint", "is this InternVL?")


def _encoder_name(name: str) -> str | None:
    if match := re.fullmatch(r"encoder\.layers?\.(\d+)\.(.+)", name):
        index, inner = match[1], match[2]
        stem, _, kind = inner.rpartition(".")
        if inner in _FACTORS:
            return f"layers.{index}.{_FACTORS[inner]}"
        return f"layers.{index}.{_LAYER[stem]}.{kind}" if stem in _LAYER else None
    return _ENCODER.get(name)
