"""TAMP (arXiv 2504.09897): which layers matter, and which tokens, told from how much image and text tokens differ.

Layers: importance is the diversity of the tokens that leave a layer, the mean of one minus the mean cosine within image
tokens, within text tokens and between them. Tokens: a layer's input statistics are taken of a core set. A token counts
by the attention that the last position pays to it; neighbours in a graph of the three nearest pass their scores on; the
best is chosen and takes its share from its neighbours, until the chosen ones represent all: their mean embedding lies
within 0.1 sqrt(1 - density) of that of all, squared, where density is the mean cosine of two tokens. (The distance is
the maximum mean discrepancy of unit embeddings under a linear kernel, our choice where the paper leaves one.)
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from edgevlm.calibration.activations import Activations
from edgevlm.calibration.layers import LayerStep, run_through
from edgevlm.models.decoder import Decoder, KeyValue, rotate
from edgevlm.models.token_drop import Passage, last_token_attention

_NEIGHBOURS = 3
_TOLERANCE = 0.1


def layer_scores(decoder: Decoder, activations: Activations) -> list[float]:
    """Importance of each layer; the activations are used up."""
    totals = [0.0] * len(decoder.layers)

    def watch(layer: int, sample: int, _before: Tensor, after: Tensor) -> None:
        totals[layer] += diversity(after, activations.sequences[sample].is_image)

    run_through(decoder, activations, watch)
    return [total / len(activations) for total in totals]


def diversity(states: Tensor, is_image: Tensor) -> float:
    """Mean of the three diversities of tokens `[S, H]`; of those that exist where a kind has fewer than two tokens."""
    units = F.normalize(states.double(), dim=1)
    image, text = units[is_image], units[~is_image]
    found = [1 - _mean_cosine(kind) for kind in (image, text) if len(kind) > 1]
    if len(image) and len(text):
        found.append(1 - float(image.mean(0) @ text.mean(0)))
    return sum(found) / max(len(found), 1)


def _mean_cosine(units: Tensor) -> float:
    """Of all pairs of different rows."""
    count = len(units)
    return float((units.sum(0).square().sum() - count) / (count * (count - 1)))


@torch.no_grad()
def core_tokens(step: LayerStep) -> list[Tensor]:
    """Of each sample the positions that stand for all, in order."""
    found = []
    for sample, states in enumerate(step.activations.states):
        attention = last_row(step, states, step.activations.rotary(sample))
        found.append(choose_tokens(attention, states))
    return found


def last_row(step: LayerStep, states: Tensor, rotary: KeyValue) -> Tensor:
    """Attention `[S]` that the last position pays, the mean over the heads."""
    keys = rotate(step.layer.self_attn.key(step.layer.input_layernorm(states[None])), *rotary)
    return last_token_attention(step.layer, Passage(states[None], states[None], rotary, keys), len(states) - 1)


def choose_tokens(attention: Tensor, states: Tensor) -> Tensor:
    """Positions of the core set, ascending; `attention` is `[S]`, `states` are `[S, H]`."""
    count = len(states)
    if count <= _NEIGHBOURS + 1:
        return torch.arange(count)
    units = F.normalize(states.double(), dim=1)
    cosines = units @ units.T
    density = min(1.0, float((cosines.sum() - count) / (count * (count - 1))))
    tolerance = _TOLERANCE * (1 - density) ** 0.5
    edges = _nearest(cosines)
    scores = attention.double() + edges @ attention.double()
    mean, total = units.mean(0), torch.zeros_like(units[0])
    chosen: list[int] = []
    while len(chosen) < count:
        best = int(scores.argmax())
        chosen.append(best)
        total += units[best]
        if float((total / len(chosen) - mean).square().sum()) < tolerance:
            break
        scores -= edges[best] * scores[best]
        scores[chosen] = -torch.inf
    return torch.tensor(sorted(chosen))


def _nearest(cosines: Tensor) -> Tensor:
    """Weights `[S, S]` of a graph: the cosine where either of two tokens is among the other's nearest, else 0."""
    others = cosines.clone().fill_diagonal_(-torch.inf)
    nearest = others.argsort(dim=1, descending=True, stable=True)[:, :_NEIGHBOURS]
    linked = torch.zeros_like(cosines, dtype=torch.bool).scatter_(
        1, nearest, torch.ones_like(nearest, dtype=torch.bool)
    )
    return torch.where(linked | linked.T, cosines.clamp(min=0), 0)
