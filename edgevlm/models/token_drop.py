"""Image tokens that stop on their way through the decoder: which of them go on behind a layer.

In: one prompt's hidden states in front of and behind the layer before a stage, and where its images are. Out: the
places that go on. K tokens of each image do; everything else always does. Two scores:

- `attention` (FastV, arXiv 2403.06764; PyramidDrop, arXiv 2410.17247): the layer's attention from the prompt's last
  token to the image's, mean over heads; the K highest. One row of attention is computed, no matrix.
- `duplicate` (DART, arXiv 2502.11494): pivots are the tokens with the largest L1 norm of their keys (all heads side by
  side, before the rotation, so that the norm does not depend on the place), first those of the image, which are kept,
  then those of the text behind it. Pivot after pivot takes the tokens least similar to it, by the cosine of the hidden
  states behind the decoder's last norm, among those not yet taken, until K are kept; each takes as many as the others,
  the first ones one more where that does not divide. Where there is less text than pivots, the image's first tokens
  stand in.

Of equal scores the first place wins, here and in ONNX. Positions behind a stage are counted anew, from 0 without gaps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgevlm.spec import TokenDropSpec

if TYPE_CHECKING:
    from edgevlm.models.decoder import DecoderLayer, KeyValue


@dataclass(frozen=True)
class Prompt:
    """Where things are in the states of one prompt.

    Attributes:
        starts: of each image, ascending.
        last: the token that the prompt ends with; an answer may follow.
        length: of all states.
    """

    starts: tuple[int, ...]
    last: int
    length: int

    def behind(self, drop: TokenDropSpec, stage: int) -> Prompt:
        """The same behind a stage."""
        less = drop.entering(stage) - drop.stages[stage].keep
        starts = tuple(start - index * less for index, start in enumerate(self.starts))
        gone = less * len(self.starts)
        return Prompt(starts, self.last - gone, self.length - gone)


@dataclass(frozen=True)
class Passage:
    """One layer's run over a prompt.

    Attributes:
        before: states `[1, S, H]` in front of it.
        after: states behind it.
        rotary: of the positions.
        keys: of the cache `[1, heads, P + S, D]`, rotated.
    """

    before: Tensor
    after: Tensor
    rotary: KeyValue
    keys: Tensor


def going_on(
    drop: TokenDropSpec, stage: int, layer: DecoderLayer, norm: nn.Module, passage: Passage, prompt: Prompt
) -> tuple[Tensor, Prompt]:
    """The states `[1, S - images * (N - K), H]` that go on behind a stage, and where things are in them."""
    kept = kept_places(drop, stage, layer, norm, passage, prompt)
    return passage.after[:, kept], prompt.behind(drop, stage)


def kept_places(
    drop: TokenDropSpec, stage: int, layer: DecoderLayer, norm: nn.Module, passage: Passage, prompt: Prompt
) -> Tensor:
    """Places int64 `[S - images * (N - K)]`, ascending, that go on behind a stage.

    Args:
        drop: the method.
        stage: which of its stages.
        layer: the one before the stage, which `passage` is of.
        norm: the decoder's last.
        passage: with a batch of one.
        prompt: where its images are.
    """
    places = torch.ones(prompt.length, dtype=torch.bool)
    if prompt.starts:
        images = torch.tensor(prompt.starts)[:, None] + torch.arange(drop.entering(stage))
        keep = drop.stages[stage].keep
        if drop.score == "attention":
            chosen = _most_attended(layer, passage, prompt, images, keep)
        else:
            chosen = _least_duplicate(drop, layer, norm, passage, prompt, images, keep)
        places[images] = chosen
    return places.nonzero()[:, 0]


def last_token_attention(layer: DecoderLayer, passage: Passage, last: int) -> Tensor:
    """Attention `[P + last + 1]` of the token at `last` to all before it and itself, mean over heads."""
    attention = layer.self_attn
    cos, sin = (table[:, last : last + 1] for table in passage.rotary)
    query = attention.query(layer.input_layernorm(passage.before[:, last : last + 1]), (cos, sin))
    end = passage.keys.shape[2] - passage.before.shape[1] + last + 1
    keys = passage.keys[:, :, :end]
    grouped = query.reshape(1, keys.shape[1], -1, keys.shape[3])
    scores = grouped @ keys.transpose(2, 3) * keys.shape[3] ** -0.5
    mean: Tensor = scores.softmax(dim=-1).mean(dim=(0, 1, 2))
    return mean


def _most_attended(layer: DecoderLayer, passage: Passage, prompt: Prompt, images: Tensor, keep: int) -> Tensor:
    """Of the places `[M, N]` those that are kept, as a mask."""
    past = passage.keys.shape[2] - prompt.length
    scores = last_token_attention(layer, passage, prompt.last)[past + images]
    return _mask(_ranked(scores)[:, :keep], images)


def _least_duplicate(
    drop: TokenDropSpec,
    layer: DecoderLayer,
    norm: nn.Module,
    passage: Passage,
    prompt: Prompt,
    images: Tensor,
    keep: int,
) -> Tensor:
    """Of the places `[M, N]` those that are kept, as a mask."""
    keys = layer.self_attn.key(layer.input_layernorm(passage.before))[0]
    size = keys.abs().sum(dim=(0, 2))
    own = _ranked(size[images])[:, : drop.image_pivots]
    text = torch.ones(prompt.length, dtype=torch.bool)
    text[images] = False
    places = torch.arange(prompt.length)
    behind = text & (places > images[:, -1:]) & (places <= prompt.last)
    instead = torch.where(places >= images[:, :1], -1.0, -2.0)
    other = _ranked(torch.where(behind, size, instead))[:, : drop.text_pivots]
    pivots = torch.cat((images.gather(1, own), other), dim=1)
    states = F.normalize(norm(passage.after[0]), dim=-1)
    similar = states[pivots] @ states[images].transpose(1, 2)
    taken = _mask(own, images)
    for pivot, share in enumerate(shares(drop, keep)):
        free = torch.where(taken, torch.tensor(torch.inf), similar[:, pivot])
        taken |= _mask(_ranked(-free)[:, :share], images)
    return taken


def shares(drop: TokenDropSpec, keep: int) -> list[int]:
    """How many tokens each pivot takes of those that are kept beside the pivots."""
    pivots = drop.image_pivots + drop.text_pivots
    each, more = divmod(keep - drop.image_pivots, pivots)
    return [each + (index < more) for index in range(pivots)]


def _ranked(scores: Tensor) -> Tensor:
    """Indexes from the highest score to the lowest, those of equal scores in their order."""
    return torch.sort(scores, dim=-1, descending=True, stable=True).indices


def _mask(chosen: Tensor, images: Tensor) -> Tensor:
    """Indexes `[M, k]` as a mask `[M, N]`."""
    return torch.zeros(images.shape, dtype=torch.bool).scatter(1, chosen, value=True)
