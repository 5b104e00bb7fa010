"""Which published tensors each tensor of a TinyGPT-V is made of, and how.

In: the pieces of the four sources and the model's numbers. Out: one `Part` for each tensor of the IR: its shape, the
pieces behind it, and a function that makes it, called when the weights are wanted. Most are as published; made are the
encoder's q, k and v (published fused, k without a bias), the decoder's (fused head by head, with LoRA beside them), and
the one linear layer that two published ones without an activation between them amount to.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from edgevlm.errors import CheckpointError
from edgevlm.models.lora import check_factors, merge
from edgevlm.models.tinygptv_sources import Piece, Pieces, Sources
from edgevlm.models.vit import resize_positions
from edgevlm.spec import DecoderSpec, ModelSpec, VitSpec


@dataclass(frozen=True)
class Part:
    """One tensor to be: `pieces` are what `make` reads; without any it is a constant of the family."""

    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]
    make: Callable[[], Tensor]


Parts = dict[str, Part]

_LAYER = re.compile(r"(visual_encoder\.blocks|Qformer\.bert\.encoder\.layer|phi\.model\.layers)\.(\d+)\.(.+)\.(\w+)")
_LAYERS = {
    "visual_encoder.blocks": "vision.encoder.layers",
    "Qformer.bert.encoder.layer": "vision.projector.layers",
    "phi.model.layers": "decoder.layers",
}
#: What is as published, by its name in a layer of each of the three.
_IN_LAYER = {
    "visual_encoder.blocks": {
        "norm1": "norm1",
        "norm2": "norm2",
        "attn.proj": "attention.out_proj",
        "mlp.fc1": "fc1",
        "mlp.fc2": "fc2",
    },
    "Qformer.bert.encoder.layer": {
        "attention.self.query": "self_attention.q_proj",
        "attention.self.key": "self_attention.k_proj",
        "attention.self.value": "self_attention.v_proj",
        "attention.output.dense": "self_attention.out_proj",
        "attention.output.LayerNorm": "self_attention.norm",
        "crossattention.self.query": "cross_attention.q_proj",
        "crossattention.self.key": "cross_attention.k_proj",
        "crossattention.self.value": "cross_attention.v_proj",
        "crossattention.output.dense": "cross_attention.out_proj",
        "crossattention.output.LayerNorm": "cross_attention.norm",
        "intermediate_query.dense": "fc1",
        "output_query.dense": "fc2",
        "output_query.LayerNorm": "norm",
    },
    "phi.model.layers": {
        "input_layernorm": "input_layernorm",
        "self_attn.q_layernorm": "self_attn.q_norm",
        "self_attn.k_layernorm": "self_attn.k_norm",
        "post_layernorm": "attention_branch_norm",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
    },
}
_OUTSIDE = {
    "visual_encoder.patch_embed.proj": "vision.encoder.patch",
    "ln_vision": "vision.projector.feature_norm",
    "Qformer.bert.embeddings.LayerNorm": "vision.projector.query_norm",
    "phi.model.embed_tokens": "decoder.embed_tokens",
    "phi.model.final_layernorm": "decoder.norm",
    "phi.lm_head": "decoder.lm_head",
}


def plan(pieces: Pieces, spec: ModelSpec, sources: Sources, where: str) -> Parts:
    """A part for every tensor that the pieces make.

    Raises:
        CheckpointError: a piece that must be made into something is missing or mis-shaped, or one has no use.
    """
    rest = _Rest(dict(pieces), where)
    parts: Parts = {}
    for name in pieces:
        ours = ir_name(name)
        if ours is not None:
            parts[ours] = _as_published(rest.take(name))
    assert isinstance(spec.vision.encoder, VitSpec)
    parts |= _encoder_parts(rest, spec.vision.encoder)
    parts |= _projector_parts(rest, spec)
    for index in range(spec.decoder.num_hidden_layers):
        parts |= _attention_parts(rest, index, spec.decoder, sources)
        parts |= _norm_biases(parts, index)
    rest.check_empty()
    return parts


def ir_name(name: str) -> str | None:
    """The IR's name of a tensor that is used as published; None for the others."""
    if match := _LAYER.fullmatch(name):
        stack, index, stem, kind = match.groups()
        inside = _IN_LAYER[stack].get(stem)
        return None if inside is None else f"{_LAYERS[stack]}.{index}.{inside}.{kind}"
    stem, _, kind = name.rpartition(".")
    return f"{_OUTSIDE[stem]}.{kind}" if stem in _OUTSIDE else None


@dataclass(frozen=True)
class _Rest:
    """The pieces that no part uses yet."""

    pieces: Pieces
    where: str

    def take(self, name: str) -> Piece:
        """Remove a piece that must be there."""
        piece = self.pieces.pop(name, None)
        if piece is None:
            raise CheckpointError(
                f"tensor {name.removeprefix('phi.')} is missing", self.where, "download the checkpoint again"
            )
        return piece

    def take_shaped(self, name: str, shape: tuple[int, ...]) -> Piece:
        """Remove a piece that must be there in this shape."""
        piece = self.take(name)
        if piece.shape != shape:
            raise CheckpointError(
                f"tensor {piece.name} of {piece.source} has shape {list(piece.shape)} instead of {list(shape)}",
                self.where,
                "name files of the same model",
            )
        return piece

    def check_empty(self) -> None:
        """Raise if a piece is left over."""
        for piece in self.pieces.values():
            raise CheckpointError(
                f"unknown tensor {piece.name} in {piece.source}", self.where, "TinyGPT-V has no such tensor"
            )


def _as_published(piece: Piece) -> Part:
    return Part(piece.shape, (piece,), piece.tensor)


def _encoder_parts(rest: _Rest, encoder: VitSpec) -> Parts:
    """Class token, positions for the input's grid, and q, k and v of each block; keys have no bias."""
    width = encoder.hidden_size
    token = rest.take_shaped("visual_encoder.cls_token", (1, 1, width))
    table = rest.take("visual_encoder.pos_embed")
    rows = table.shape[1] if len(table.shape) == 3 else 0
    if table.shape != (1, rows, width) or rows < 2 or round((rows - 1) ** 0.5) ** 2 != rows - 1:
        raise CheckpointError(
            f"tensor {table.name} of {table.source} has shape {list(table.shape)}: not a square of positions and one "
            "for the class token",
            rest.where,
        )
    parts = {
        "vision.encoder.class_token": Part((width,), (token,), lambda: token.tensor().reshape(-1)),
        "vision.encoder.positions": Part(
            (encoder.grid**2 + 1, width), (table,), lambda: resize_positions(table.tensor()[0], encoder.grid, 1)
        ),
    }
    for index in range(encoder.num_hidden_layers):
        published = f"visual_encoder.blocks.{index}.attn."
        path = f"vision.encoder.layers.{index}.attention."
        fused = rest.take_shaped(f"{published}qkv.weight", (3 * width, width))
        query, value = (rest.take_shaped(f"{published}{name}_bias", (width,)) for name in ("q", "v"))
        for place, name in enumerate(("q_proj", "k_proj", "v_proj")):
            parts[f"{path}{name}.weight"] = Part((width, width), (fused,), _third(fused, place))
        parts[f"{path}q_proj.bias"] = _as_published(query)
        parts[f"{path}k_proj.bias"] = Part((width,), (), _zeros_like(query))
        parts[f"{path}v_proj.bias"] = _as_published(value)
    return parts


def _third(fused: Piece, place: int) -> Callable[[], Tensor]:
    return lambda: fused.tensor().chunk(3)[place]


def _zeros_like(piece: Piece) -> Callable[[], Tensor]:
    return lambda: torch.zeros_like(piece.tensor())


def _projector_parts(rest: _Rest, spec: ModelSpec) -> Parts:
    """The queries, and `llama_proj` and `llama_proj2` as one layer: W2 (W1 x + b1) + b2, computed in float64."""
    queries = rest.take("query_tokens")
    hidden, width = queries.shape[-1], spec.decoder.hidden_size
    first = rest.take("llama_proj.weight")
    between = first.shape[0]
    if first.shape != (between, hidden):
        raise CheckpointError(
            f"tensor {first.name} of {first.source} has shape {list(first.shape)} instead of {[between, hidden]}",
            rest.where,
        )
    first_bias = rest.take_shaped("llama_proj.bias", (between,))
    second = rest.take_shaped("llama_proj2.weight", (width, between))
    second_bias = rest.take_shaped("llama_proj2.bias", (width,))

    def weight() -> Tensor:
        return (second.tensor().double() @ first.tensor().double()).float()

    def bias() -> Tensor:
        return (second.tensor().double() @ first_bias.tensor().double() + second_bias.tensor().double()).float()

    return {
        "vision.projector.queries": Part(queries.shape[1:], (queries,), lambda: queries.tensor()[0]),
        "vision.projector.linear.weight": Part((width, hidden), (first, second), weight),
        "vision.projector.linear.bias": Part((width,), (first_bias, second, second_bias), bias),
    }


def _attention_parts(rest: _Rest, index: int, decoder: DecoderSpec, sources: Sources) -> Parts:
    """q, k, v and the output projection of one layer, with LoRA merged.

    Rows of the fused matrix, and of LoRA's B, are ordered by head, then q, k, v, then channel. Merging the rows of one
    of the three is the same as merging the whole and taking the rows.
    """
    published, path = f"phi.model.layers.{index}.self_attn.", f"decoder.layers.{index}.self_attn."
    width, scale = decoder.hidden_size, sources.lora_alpha / sources.lora_rank
    fused = f"{published}query_key_value.weight" in rest.pieces
    factors = _factors(rest, f"{published}query_key_value", (3 * width, width), sources.lora_rank)
    parts: Parts = {}
    for kind, tail in (("weight", (width,)), ("bias", ())):
        whole = rest.take_shaped(f"{published}query_key_value.{kind}", (3 * width, *tail)) if fused else None
        for place, name in enumerate(("q_proj", "k_proj", "v_proj")):
            base = whole or rest.take_shaped(f"{published}{name}.{kind}", (width, *tail))
            added = factors if kind == "weight" else ()
            make = _rows(base, place if fused else None, place, added, decoder, scale)
            parts[f"{path}{name}.{kind}"] = Part((width, *tail), (base, *added), make)
    dense = rest.take_shaped(f"{published}dense.weight", (width, width))
    added = _factors(rest, f"{published}dense", (width, width), sources.lora_rank)
    parts[f"{path}o_proj.weight"] = Part(dense.shape, (dense, *added), _rows(dense, None, None, added, decoder, scale))
    parts[f"{path}o_proj.bias"] = _as_published(rest.take_shaped(f"{published}dense.bias", (width,)))
    return parts


def _factors(rest: _Rest, name: str, shape: tuple[int, int], rank: int) -> tuple[Piece, ...]:
    """LoRA's A and B of a matrix, or nothing where it has none."""
    names = [f"{name}.lora_{factor}.weight" for factor in "AB"]
    if not any(factor in rest.pieces for factor in names):
        return ()
    a, b = (rest.take(factor) for factor in names)
    short = f"layer {name.split('.')[3]} {name.rpartition('.')[2]}"
    check_factors(short, a.shape, b.shape, rank=rank, shape=shape, where=f"{rest.where}: {a.source}: {a.name}")
    return a, b


def _rows(
    base: Piece,
    base_place: int | None,
    factor_place: int | None,
    factors: tuple[Piece, ...],
    decoder: DecoderSpec,
    scale: float,
) -> Callable[[], Tensor]:
    """Makes one of q, k, v (by its place) of `base`, plus LoRA; a place of None takes all rows."""

    def pick(tensor: Tensor, place: int | None) -> Tensor:
        if place is None:
            return tensor
        by_head = tensor.reshape(decoder.num_attention_heads, 3, decoder.head_dim, *tensor.shape[1:])
        return by_head[:, place].reshape(-1, *tensor.shape[1:])

    def make() -> Tensor:
        weight = pick(base.tensor(), base_place)
        if not factors:
            return weight
        a, b = factors
        return merge(weight, a.tensor(), pick(b.tensor(), factor_place), scale)

    return make


def _norm_biases(parts: Parts, index: int) -> Parts:
    """The biases of the q and k norms, which the training code leaves at zero and does not write."""
    path = f"decoder.layers.{index}.self_attn."
    biases: Parts = {}
    for name in ("q_norm", "k_norm"):
        weight = parts.get(f"{path}{name}.weight")
        if weight is not None and f"{path}{name}.bias" not in parts:
            biases[f"{path}{name}.bias"] = Part(weight.shape, (), _zeros_like(weight.pieces[0]))
    return biases
