"""The original model in float32, a layer at a time: what an exported model must answer like.

In: a `VlmModel` whose weights may be memory-mapped in bf16. Out: image features and logits. Only one decoder layer
(or a block of head rows) exists in float32 at any moment, and what was read of it is let go of, so the reference of an
8B model needs little memory.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from edgevlm.models.decoder import Decoder, DecoderLayer, KeyValue, rotary_for
from edgevlm.models.footprint import release
from edgevlm.models.token_drop import Passage, Prompt, kept_places
from edgevlm.models.vlm import VlmModel
from edgevlm.patches import graph_inputs
from edgevlm.preprocess import PreparedImage, normalise
from edgevlm.prompt import IMAGE_PLACEHOLDER
from edgevlm.runtimes.base import Encoded, Segment
from edgevlm.runtimes.positions import RotaryPositions, flat
from edgevlm.spec import DecoderSpec
from edgevlm.tile_tokens import shares_tiles, tile_boxes

Float32 = NDArray[np.float32]
#: Hears, for a sequence by its number, which places went on behind the next stage, among those that entered it.
Kept = Callable[[int, NDArray[np.int64]], None]

_HEAD_ROWS = 16384


def _float(module: nn.Module) -> nn.Module:
    """A float32 copy of a module."""
    return copy.deepcopy(module).float()


class _Widened(nn.Module):
    """Stands for a layer: it becomes float32 while it runs."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self._stored = (layer,)  # in a tuple, so that it is no submodule and stays as it is

    def forward(self, *inputs: Tensor) -> Tensor:
        """The layer's output."""
        return _float(self._stored[0])(*inputs)  # type: ignore[no-any-return]


def _float_by_layers(module: nn.Module) -> nn.Module:
    """A float32 copy of a module whose layers are copied one at a time."""
    stacks = [stack for stack in module.modules() if isinstance(stack, nn.ModuleList)]
    memo: dict[int, nn.Module] = {id(layer): _Widened(layer) for stack in stacks for layer in stack}
    return copy.deepcopy(module, memo).float()


@torch.inference_mode()
def image_features(model: VlmModel, images: list[Float32]) -> list[Float32]:
    """Pixels of each image's tiles `[T, 3, R, R]` to their features `[T, N, hidden]`, one tile at a time.

    An image's patches `[rows, columns, M, V]` become `[1, N, hidden]`.
    """
    vision = _float_by_layers(model.vision)
    patches = model.spec.preprocess.patches
    if patches is not None:
        packed = [graph_inputs(image, patches) for image in images]
        return [vision(torch.from_numpy(rows), torch.from_numpy(grid)).numpy() for rows, grid in packed]
    return [torch.cat([vision(tile[None]) for tile in torch.from_numpy(tiles)]).numpy() for tiles in images]


@torch.inference_mode()
def encoded_images(model: VlmModel, images: list[PreparedImage], questions: Sequence[str] = ()) -> list[Encoded]:
    """Each image's features, with their places where the model shares tokens out among tiles.

    `questions`, one an image, are for models whose image tokens depend on them.
    """
    pixels = [normalise(image.tiles, model.spec.preprocess) for image in images]
    if (side := model.text_side) is not None and model.spec.vision.text is not None:
        vision, reader = _float_by_layers(model.vision), side.reader()
        asked = [torch.from_numpy(reader.embed(question)) for question in questions]
        inputs = [(torch.from_numpy(tiles), text) for tiles, text in zip(pixels, asked, strict=True)]
        return [Encoded(torch.cat([vision(tile[None], text=text) for tile in tiles]).numpy()) for tiles, text in inputs]
    if not shares_tiles(model.spec):
        return [Encoded(rows) for rows in image_features(model, pixels)]
    vision, boxes = _float_by_layers(model.vision), [tile_boxes(image, model.spec) for image in images]
    pairs = [vision(*map(torch.from_numpy, pair)) for pair in zip(pixels, boxes, strict=True)]
    return [Encoded(rows.numpy(), places.numpy()) for rows, places in pairs]


@torch.inference_mode()
def token_embeddings(model: VlmModel, ids: list[int]) -> Float32:
    """Embeddings `[L, hidden]` of token ids."""
    return F.embedding(torch.tensor(ids), model.decoder.embed_tokens.weight).float().numpy()


@torch.inference_mode()
def fused_prompts(model: VlmModel, images: list[Float32], prompts: list[list[int]]) -> list[Float32]:
    """What the decoder of a model with a fusion sees, one fusion layer at a time.

    Args:
        model: the original.
        images: embeddings `[V, hidden]` of each prompt's image.
        prompts: token ids in which `IMAGE_PLACEHOLDER` stands for the image.

    Returns:
        float32 `[L - 1 + Q, hidden]` per prompt: positions that are masked (the image's and those of token id 0) keep
        their raw embedding, and the image's is replaced by its Q fused tokens.
    """
    fusion = model.fusion
    assert fusion is not None
    raws = [token_embeddings(model, [max(token, 0) for token in prompt]) for prompt in prompts]
    valid = [np.array(prompt) > 0 for prompt in prompts]
    texts = [raw[mask] for raw, mask in zip(raws, valid, strict=True)]
    states = [torch.from_numpy(np.concatenate(pair))[None] for pair in zip(images, texts, strict=True)]
    for stored in fusion.layers:
        layer = _float(stored)
        states = [layer(x, fusion.rotary(x.shape[1]), None, None)[0] for x in states]
        release(stored)
    fused = []
    for raw, mask, prompt, text, x in zip(raws, valid, prompts, texts, states, strict=True):
        kept = x[0, -(fusion.image_tokens + len(text)) :].numpy()
        raw[mask] = kept[fusion.image_tokens :]
        place = prompt.index(IMAGE_PLACEHOLDER)
        fused.append(np.concatenate((raw[:place], kept[: fusion.image_tokens], raw[place + 1 :])))
    return fused


def head_logits(decoder: Decoder, normed: Tensor) -> Tensor:
    """float32 logits `[P, V]` of hidden states `[P, H]` behind the last norm, a block of the head's rows at a time."""
    tied = decoder.spec.tied_embeddings
    weight = decoder.embed_tokens.weight if tied else decoder.lm_head.weight
    logits = torch.cat([normed @ rows.float().T for rows in torch.split(weight, _HEAD_ROWS)], dim=1)
    return logits if tied or not decoder.spec.head_bias else logits + decoder.lm_head.bias.float()


@torch.inference_mode()
def last_logits(
    model: VlmModel,
    sequences: list[list[Segment]],
    counts: list[int],
    images: list[tuple[int, ...]] | None = None,
    kept: Kept = lambda _number, _places: None,
) -> list[Float32]:
    """Logits of the last positions of each sequence.

    Args:
        model: the original.
        sequences: embeddings of whole sequences, in pieces `[L, hidden]` or grids `[rows, columns, hidden]`.
        counts: for each sequence, how many of its last positions to compute logits for.
        images: for decoders that drop tokens of images, where in each sequence these begin; the prompt that they came
            with ends with the first of the last positions.
        kept: for these decoders, is told what goes on, stage by stage.

    Returns:
        float32 `[count, V]` per sequence.
    """
    decoder, spec = model.decoder, model.spec.decoder
    states = [torch.from_numpy(np.concatenate(flat(segments)).astype(np.float32))[None] for segments in sequences]
    tables = [_rotary(spec, segments) for segments in sequences]
    starts = images or [()] * len(sequences)
    prompts = [
        Prompt(begin, x.shape[1] - count, x.shape[1]) for begin, x, count in zip(starts, states, counts, strict=True)
    ]
    norm = _float(decoder.norm)
    for index, stored in enumerate(decoder.layers):
        layer = _float(stored)
        stage = spec.token_drop.stage_behind(index) if spec.token_drop else None
        for number, before in enumerate(states):
            states[number], (keys, _) = layer(before, tables[number], None, None)
            if spec.token_drop and stage is not None:
                assert isinstance(layer, DecoderLayer)
                passage = Passage(before, states[number], tables[number], keys)
                places = kept_places(spec.token_drop, stage, layer, norm, passage, prompts[number])
                kept(number, places.numpy())
                states[number], prompts[number] = (
                    states[number][:, places],
                    prompts[number].behind(spec.token_drop, stage),
                )
                tables[number] = rotary_for(spec, torch.arange(prompts[number].length)[None])
        release(stored)
    tails = torch.cat([norm(x[0, -count:]) for x, count in zip(states, counts, strict=True)])
    logits = head_logits(decoder, tails)
    return [part.numpy() for part in torch.split(logits, counts)]


def _rotary(spec: DecoderSpec, segments: list[Segment]) -> KeyValue:
    """Cosines and sines `[1, L, rotary_dim / 2]` of a sequence from its start."""
    length = sum(map(len, flat(segments)))
    if spec.rope_sections:
        return rotary_for(spec, torch.from_numpy(RotaryPositions(length).append(0, segments))[:, None])
    return rotary_for(spec, torch.arange(length)[None])
