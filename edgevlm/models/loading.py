"""The steps that loaders share: tensors named as in the IR, the tie rule, modules built, checked and filled.

A loader maps each published tensor name to the IR's (`vision.*`, `decoder.*`) or to None for what the model does not
use, reads its spec, and lets `assemble` do the rest. Nothing is read before names and shapes have been compared.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from edgevlm.errors import CheckpointError
from edgevlm.models.checkpoint import Checkpoint
from edgevlm.models.decoder import Decoder
from edgevlm.models.tensor_source import Source
from edgevlm.models.tensors import assign, check_names_and_shapes, same_data
from edgevlm.models.tokenizer_files import TokenizerFacts
from edgevlm.models.vlm import VisionModel, VlmModel, build_vision
from edgevlm.spec import ModelSpec

HEAD, EMBEDDING = "decoder.lm_head.weight", "decoder.embed_tokens.weight"


def named_tensors(
    shapes: dict[str, tuple[int, ...]], ir_name: Callable[[str], str | None], where: str
) -> dict[str, str]:
    """IR name -> published name, for every tensor that the model uses.

    Raises:
        CheckpointError: two tensors have one IR name, or `ir_name` knows no such tensor.
    """
    names: dict[str, str] = {}
    for published in shapes:
        name = ir_name(published)
        if name is None:
            continue
        if name in names:
            raise CheckpointError(f"tensors {names[name]} and {published} are the same layer", where)
        names[name] = published
    return names


def decoder_name(name: str) -> str | None:
    """`embed_tokens.*`, `layers.*`, `norm.*` of a Llama, Qwen2 or Phi model (no prefix) as the IR's; None for buffers.

    Phi's names differ from Llama's in `self_attn.dense` and `final_layernorm`.

    Raises:
        CheckpointError: no such tensor.
    """
    if name.endswith("rotary_emb.inv_freq"):
        return None
    if not re.match(r"(embed_tokens|layers\.\d+|norm|final_layernorm)\.", name):
        raise CheckpointError(f"unknown tensor {name}", "the decoder", "is this the published checkpoint?")
    name = re.sub(r"^final_layernorm\.", "norm.", name)
    return "decoder." + name.replace(".self_attn.dense.", ".self_attn.o_proj.")


def is_tied(checkpoint: Checkpoint, names: dict[str, str]) -> bool:
    """The tie rule, on data: no head, or a head equal to the embedding. The configuration's flag is not trusted."""
    head, embedding = names.get(HEAD), names.get(EMBEDDING)
    if head is None or embedding is None:
        return head is None
    if "decoder.lm_head.bias" in names:
        return False
    return same_data(checkpoint.tensor(head), checkpoint.tensor(embedding))


@dataclass(frozen=True)
class UsedTensors:
    """The tensors of a checkpoint that become parameters; a head that is the embedding is left out.

    Attributes:
        sources: where each comes from, by IR name.
        shapes: by IR name.
        tied: the head is the embedding, by the data.
    """

    sources: dict[str, Source]
    shapes: dict[str, tuple[int, ...]]
    tied: bool


def used_tensors(checkpoint: Checkpoint, named: Mapping[str, str | Source]) -> UsedTensors:
    """Find out whether the head is tied, and how the tensors are shaped; of the weights the head's alone are read.

    Args:
        checkpoint: the tensors.
        named: by IR name, a tensor's published name or its source.
    """
    sources = {name: Source(source) if isinstance(source, str) else source for name, source in named.items()}
    tied = is_tied(checkpoint, {name: source.published for name, source in sources.items()})
    if tied:
        sources.pop(HEAD, None)
    shapes = {name: source.shape(checkpoint.shapes[source.published]) for name, source in sources.items()}
    return UsedTensors(sources, shapes, tied)


def vocabulary_rows(shapes: dict[str, tuple[int, ...]], where: str) -> int:
    """Rows of the embedding, from its tensor: configurations are often wrong about them.

    Raises:
        CheckpointError: there is no embedding.
    """
    shape = shapes.get(EMBEDDING)
    if shape is None:
        raise CheckpointError("the decoder's embedding tensor is missing", where, "download the checkpoint again")
    return shape[0]


def build_checked(
    spec: ModelSpec,
    shapes: dict[str, tuple[int, ...]],
    names: dict[str, str],
    where: str,
    *,
    batchnorm: bool = False,
) -> tuple[VisionModel, Decoder]:
    """Modules on the meta device, once every tensor's name and shape (by IR name) has been found to fit them.

    Args:
        spec: the numbers of the model.
        shapes: shape by IR name.
        names: published name by IR name.
        where: the checkpoint, for messages.
        batchnorm: the checkpoint holds BatchNorms that the loader folds before it fills the modules.

    Raises:
        CheckpointError: a tensor is missing, unknown or mis-shaped.
    """
    with torch.device("meta"):
        stored = build_vision(spec, batchnorm=batchnorm)
        vision = build_vision(spec)
        decoder = Decoder(spec.decoder)
    expected = {f"vision.{name}": tuple(value.shape) for name, value in stored.state_dict().items()}
    expected |= {f"decoder.{name}": tuple(value.shape) for name, value in decoder.state_dict().items()}
    optional = {name for name in expected if name.endswith("num_batches_tracked")}
    check_names_and_shapes(expected, shapes, optional, names, where)
    return vision, decoder


def assemble(
    spec: ModelSpec,
    checkpoint: Checkpoint,
    used: UsedTensors,
    tokenizer: TokenizerFacts,
    *,
    image_newline: str | None = None,
) -> VlmModel:
    """A model from the tensors of one checkpoint, as they are stored and memory-mapped.

    Args:
        spec: the numbers of the model.
        checkpoint: the tensors.
        used: those that become parameters.
        tokenizer: the files beside it.
        image_newline: published name of the embedding that ends a row of image features.

    Raises:
        CheckpointError: a tensor is missing, unknown or mis-shaped.
    """
    names = {name: source.published for name, source in used.sources.items()}
    vision, decoder = build_checked(spec, used.shapes, names, str(checkpoint.folder))
    tensors = {name: source.read(checkpoint) for name, source in used.sources.items()}
    assign(vision, tensors, "vision.")
    assign(decoder, tensors, "decoder.")
    newline = None if image_newline is None else checkpoint.tensor(image_newline)
    return VlmModel(spec, vision, decoder, tokenizer.files, checkpoint.sources, image_newline=newline)
