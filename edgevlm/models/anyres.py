"""What LLaVA-NeXT and LLaVA-OneVision share: tiles of the canvas that suits an image, and `image_newline`.

In: a checkpoint's folder, tensor names and processor files. Out: a `VlmModel` with the newline, and the canvases.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from edgevlm.errors import CheckpointError
from edgevlm.models import llava
from edgevlm.models.checkpoint import open_checkpoint
from edgevlm.models.configs import PublishedConfig, validated
from edgevlm.models.loading import assemble, named_tensors, used_tensors
from edgevlm.models.processor_files import ProcessorFiles, disagree
from edgevlm.models.tokenizer_files import TokenizerFacts, tokenizer_facts
from edgevlm.models.vlm import VlmModel
from edgevlm.spec import AnyresTiles, ModelSpec, VitSpec
from edgevlm.tiling import tile_problem

Pinpoints: TypeAlias = tuple[tuple[int, int], ...]
#: Tensor shapes by IR name, whether the head is the embedding, and the tokenizer, to the spec.
ReadSpec: TypeAlias = Callable[[dict[str, tuple[int, ...]], bool, TokenizerFacts], ModelSpec]

_NEWLINES = ("image_newline", "model.image_newline")


class _Canvases(PublishedConfig):
    image_grid_pinpoints: Pinpoints | None = None


def load_with_newline(folder: Path, encoder: VitSpec, read_spec: ReadSpec) -> VlmModel:
    """Load a checkpoint of either family; tensors stay memory-mapped.

    Raises:
        CheckpointError: a tensor is missing, unknown or mis-shaped, or `read_spec` refuses.
    """
    checkpoint, tokenizer = open_checkpoint(folder), tokenizer_facts(folder)
    names = named_tensors(checkpoint.shapes, lambda name: ir_name(name, encoder), str(folder))
    used = used_tensors(checkpoint, names)
    spec = read_spec(used.shapes, used.tied, tokenizer)
    newline = newline_name(checkpoint.shapes, spec.decoder.hidden_size, str(folder))
    return assemble(spec, checkpoint, used, tokenizer, image_newline=newline)


def ir_name(published: str, encoder: VitSpec) -> str | None:
    """A tensor name of any transformers layout as the IR's; None for what is no part of a module.

    Raises:
        CheckpointError: the families have no such tensor.
    """
    return None if published in _NEWLINES else llava.ir_name(published, encoder)


def newline_name(shapes: dict[str, tuple[int, ...]], hidden_size: int, where: str) -> str:
    """The published name of `image_newline`.

    Raises:
        CheckpointError: it is missing, there twice, or has another shape.
    """
    found = [name for name in _NEWLINES if name in shapes]
    if not found:
        raise CheckpointError("tensor image_newline is missing", where, "download the checkpoint again")
    if len(found) > 1:
        raise CheckpointError(f"tensors {' and '.join(found)} are the same layer", where)
    if shapes[found[0]] != (hidden_size,):
        raise CheckpointError(f"tensor {found[0]} has shape {list(shapes[found[0]])} instead of {[hidden_size]}", where)
    return found[0]


def read_tiles(
    files: ProcessorFiles, pinpoints: Pinpoints, side: int, where: str, *, cut_several: bool = False
) -> AnyresTiles:
    """The canvases of `config.json`, which the processor must have too.

    Args:
        files: the processor files.
        pinpoints: the canvases, in pixels.
        side: of the tower's input, in pixels.
        where: `config.json`, for messages.
        cut_several: of several images in one question each is cut.

    Raises:
        CheckpointError: the processor has others, or a canvas is not made of whole tiles.
    """
    processor = validated(_Canvases, files.image, files.image_where)
    disagree("image_grid_pinpoints", processor.image_grid_pinpoints, pinpoints, files.image_where)
    tiles = AnyresTiles(pinpoints, cut_several=cut_several)
    problem = tile_problem(tiles, side)
    if problem is not None:
        raise CheckpointError(f"config.json: image_grid_pinpoints: {problem}", where)
    return tiles
