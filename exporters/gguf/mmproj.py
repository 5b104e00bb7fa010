"""Write the vision side as an `mmproj` GGUF, for programs that use llama.cpp's own image support (mtmd).

In: a `VlmModel` whose encoder llama.cpp has a graph for: CLIP with the LLaVA-1.5 projector, SigLIP with Idefics3's
(SmolVLM), InternViT with InternVL's. Out: `mmproj-<type>.gguf`. The session does not read it; it runs the vision graph
in ONNX. Keys and tensor names are those of llama.cpp's loader (tools/mtmd/clip-impl.h).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
from torch import Tensor

from edgevlm.exporters.base import Artifact, Progress
from edgevlm.exporters.gguf.values import gguf_values
from edgevlm.models.vlm import VlmModel
from edgevlm.recipe import Precision
from edgevlm.spec import (
    AspectTiles,
    LinearProjectorSpec,
    MlpProjectorSpec,
    ModelSpec,
    PreprocessSpec,
    SplitTiles,
    VitSpec,
)

Kind = Literal["mlp", "idefics3", "internvl"]

_ENCODER = {
    "class_token": "v.class_embd",
    "positions": "v.position_embd.weight",
    "patch.weight": "v.patch_embd.weight",
    "patch.bias": "v.patch_embd.bias",
    "pre_norm": "v.pre_ln",
    "post_norm": "v.post_ln",
}
_LAYER = {
    "norm1": "ln1",
    "norm2": "ln2",
    "attention.q_proj": "attn_q",
    "attention.k_proj": "attn_k",
    "attention.v_proj": "attn_v",
    "attention.out_proj": "attn_out",
    "fc1": "ffn_up",
    "fc2": "ffn_down",
}
_PROJECTOR: dict[Kind, dict[str, str]] = {
    "mlp": {"linear_1": "mm.0", "linear_2": "mm.2"},
    "idefics3": {"linear": "mm.model.fc"},
    "internvl": {"norm": "mm.model.mlp.0", "linear_1": "mm.model.mlp.1", "linear_2": "mm.model.mlp.3"},
}


def projector_kind(spec: ModelSpec) -> Kind | None:
    """Which of llama.cpp's graphs computes this vision side, or None."""
    vision = spec.vision
    encoder, projector = vision.encoder, vision.projector
    if not isinstance(encoder, VitSpec) or encoder.keep_class_token:
        return None
    gated = encoder.layer_scale
    if isinstance(projector, LinearProjectorSpec):
        fits = not (projector.bias or encoder.class_token or encoder.pre_norm or gated) and encoder.post_norm
        # llama.cpp cuts images for this graph as Idefics3 does, and frames the tiles with its words.
        fits = fits and isinstance(spec.preprocess.tiles, SplitTiles)
        return "idefics3" if fits and vision.pixel_shuffle > 1 else None
    if not isinstance(projector, MlpProjectorSpec) or not encoder.class_token or encoder.post_norm:
        return None
    if projector.input_norm:
        return "internvl" if vision.pixel_shuffle > 1 and not encoder.pre_norm and gated else None
    # llama.cpp's graph has no newline behind a row of features, which models with tiles have.
    return "mlp" if vision.pixel_shuffle == 1 and not gated and spec.preprocess.tiles is None else None


def supports(spec: ModelSpec) -> str | None:
    """Why this vision side cannot become an mmproj, or None."""
    if spec.vision.reducer is not None:
        return f"llama.cpp's image support cannot leave out tokens as {spec.vision.reducer.name} does"
    if projector_kind(spec) is None:
        return "llama.cpp has no graph for this vision side; export without --mmproj"
    return None


def export_mmproj(model: VlmModel, out: Path, *, precision: Precision, progress: Progress) -> list[Artifact]:
    """Write `out/mmproj-f32.gguf`, or `mmproj-f16.gguf` for any lower precision.

    Args:
        model: one for which `supports` finds nothing.
        out: an existing folder.
        precision: of the vision tower.
        progress: called with tensors done and in all.

    Raises:
        CheckpointError: a weight is not finite or does not fit float16.
        OSError: the file cannot be written.
    """
    kind = projector_kind(model.spec)
    assert kind is not None
    name = "f32" if precision == "fp32" else "f16"
    path = out / f"mmproj-{name}.gguf"
    tensors = dict(_tensors(model, kind))
    writer = gguf.GGUFWriter(path, "clip")
    weights = bits = 0
    try:
        _add_keys(writer, model.spec, kind, full=name == "f32")
        dtypes = {key: _dtype(key, tensor, full=name == "f32") for key, tensor in tensors.items()}
        for key, tensor in tensors.items():
            size = tensor.numel() * dtypes[key].itemsize
            writer.add_tensor_info(key, tuple(tensor.shape), dtypes[key], size)
            weights, bits = weights + tensor.numel(), bits + 8 * size
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for index, (key, tensor) in enumerate(tensors.items()):
            writer.write_tensor_data(gguf_values(tensor, dtypes[key], key))
            progress(index + 1, len(tensors), f"writing {path.name}")
    finally:
        writer.close()
    return [Artifact(path.name, "mmproj", "gguf", name, bits / weights, weights)]


def _add_keys(writer: gguf.GGUFWriter, spec: ModelSpec, kind: Kind, *, full: bool) -> None:
    vision, encoder = spec.vision, spec.vision.encoder
    assert isinstance(encoder, VitSpec)
    writer.add_name(spec.name)
    writer.add_file_type(int(gguf.LlamaFileType.ALL_F32 if full else gguf.LlamaFileType.MOSTLY_F16))
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type(kind)
    writer.add_vision_projection_dim(spec.decoder.hidden_size)
    writer.add_vision_image_size(vision.image_size)
    writer.add_vision_patch_size(encoder.patch_size)
    writer.add_vision_embedding_length(encoder.hidden_size)
    writer.add_vision_feed_forward_length(encoder.intermediate_size)
    writer.add_vision_block_count(encoder.num_hidden_layers)
    writer.add_vision_head_count(encoder.num_attention_heads)
    writer.add_vision_attention_layernorm_eps(encoder.norm_eps)
    _add_preprocessing(writer, spec.preprocess)
    if encoder.activation != "quick_gelu":
        writer.add_vision_use_gelu(True)
    if kind == "mlp":
        # Without it llama.cpp leaves the last layer out, which this file does not hold in the first place.
        writer.add_array("clip.vision.feature_layer", [encoder.num_hidden_layers])
    else:
        writer.add_vision_projector_scale_factor(vision.pixel_shuffle)


def _add_preprocessing(writer: gguf.GGUFWriter, spec: PreprocessSpec) -> None:
    writer.add_vision_image_mean(list(spec.mean))
    writer.add_vision_image_std(list(spec.std))
    if isinstance(spec.tiles, SplitTiles):
        writer.add_uint32("clip.vision.preproc_image_size", spec.tiles.longest_edge)
    elif isinstance(spec.tiles, AspectTiles):
        writer.add_uint32("clip.vision.preproc_min_tiles", spec.tiles.min_tiles)
        writer.add_uint32("clip.vision.preproc_max_tiles", spec.tiles.max_tiles)


def _tensors(model: VlmModel, kind: Kind) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the vision side under llama.cpp's name."""
    for name, tensor in model.vision.state_dict().items():
        part, _, rest = name.partition(".")
        yield (_encoder_name(rest) if part == "encoder" else _renamed(rest, _PROJECTOR[kind])), tensor


def _encoder_name(name: str) -> str:
    if match := re.fullmatch(r"layers\.(\d+)\.(.+)", name):
        index, inner = match[1], match[2]
        if inner in ("scale1", "scale2"):
            return f"v.blk.{index}.ls{inner[-1]}.weight"
        return f"v.blk.{index}.{_renamed(inner, _LAYER)}"
    return _ENCODER.get(name) or _renamed(name, _ENCODER)


def _renamed(name: str, table: dict[str, str]) -> str:
    stem, _, kind = name.rpartition(".")
    return f"{table[stem]}.{kind}"


def _dtype(name: str, tensor: Tensor, *, full: bool) -> np.dtype[Any]:
    """Matrices and the patch convolution narrow; vectors and positions are float32 in llama.cpp's graphs."""
    narrow = not full and tensor.dim() > 1 and "position" not in name
    return np.dtype(np.float16 if narrow else np.float32)
