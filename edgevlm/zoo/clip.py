"""The two towers of a CLIP (arXiv 2103.00020) in small, as a LLaVA's encoder is trained before it meets a decoder.

In: pixels, and captions of scenes as token ids. Out: unit vectors of one space for whole images and for captions, and
on the way the patch features that a LLaVA takes: the hidden state before the last layer, without the class token.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

from edgevlm.models.vit import Vit, VitAttention, VitLayer, activate
from edgevlm.spec import VitSpec
from edgevlm.zoo.drawing import Scene
from edgevlm.zoo.tokenizer import token_id

_MAX_LOGIT_SCALE = math.log(100.0)


@dataclass(frozen=True)
class TextTowerSpec:
    """Sizes of the text tower; `projection_size` is the width of the space that both towers end in."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int
    projection_size: int

    @property
    def layer(self) -> VitSpec:
        """Its layers are a CLIP vision tower's, but causal."""
        return VitSpec(
            hidden_size=self.hidden_size,
            intermediate_size=4 * self.hidden_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            patch_size=1,
            grid=1,
            norm_eps=1e-5,
            activation="quick_gelu",
        )


class ClipVision(nn.Module):
    """The vision tower with the layer behind the features, its norm and the projection into the shared space."""

    def __init__(self, spec: VitSpec, projection_size: int) -> None:
        super().__init__()
        layers = spec.num_hidden_layers + 1
        self.vit = Vit(replace(spec, num_hidden_layers=layers, keep_class_token=True, post_norm=True))
        self.projection = nn.Linear(spec.hidden_size, projection_size, bias=False)

    def both(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Patch features [B, N, C] and unit image vectors [B, P] of pixels [B, 3, R, R]."""
        vit = self.vit
        x = vit.patch(pixels).flatten(2).transpose(1, 2)
        x = torch.cat((vit.class_token.expand(len(x), 1, -1), x), dim=1)
        x = vit.pre_norm(x + vit.positions)
        for layer in vit.layers[:-1]:
            x = layer(x)
        summary = vit.post_norm(_class_token_after(vit.layers[-1], x))
        return x[:, 1:], F.normalize(self.projection(summary), dim=-1)

    def forward(self, pixels: Tensor) -> Tensor:
        """Patch features [B, N, C]."""
        return self.both(pixels)[0]


def _class_token_after(layer: nn.Module, x: Tensor) -> Tensor:
    """The class token [B, C] that a layer makes of its input [B, 1 + N, C]; the patches are let go."""
    assert isinstance(layer, VitLayer)
    attention, normed = layer.attention, layer.norm1(x)

    def split(y: Tensor) -> Tensor:
        return y.view(len(x), -1, attention.heads, y.shape[-1] // attention.heads).transpose(1, 2)

    query, key, value = attention.q_proj(normed[:, :1]), attention.k_proj(normed), attention.v_proj(normed)
    mixed = F.scaled_dot_product_attention(split(query), split(key), split(value))
    token = x[:, 0] + attention.out_proj(mixed.transpose(1, 2).flatten(1))
    return token + layer.fc2(activate(layer.fc1(layer.norm2(token)), layer.activation))  # type: ignore[no-any-return]


class _CausalAttention(VitAttention):
    """As in the vision tower, but no token sees what follows it."""

    causal = True


class TextTower(nn.Module):
    """Captions to unit vectors, read at the end token."""

    def __init__(self, spec: TextTowerSpec) -> None:
        super().__init__()
        self.spec = spec
        self.embed_tokens = nn.Embedding(spec.vocab_size, spec.hidden_size)
        self.positions = nn.Parameter(torch.zeros(spec.max_position_embeddings, spec.hidden_size))
        self.layers = nn.ModuleList([VitLayer(spec.layer) for _ in range(spec.num_hidden_layers)])
        for layer in self.layers:
            layer.attention = _CausalAttention(spec.layer)
        self.post_norm = nn.LayerNorm(spec.hidden_size, eps=1e-5)
        self.projection = nn.Linear(spec.hidden_size, spec.projection_size, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(10.0)))

    def forward(self, ids: Tensor, ends: Tensor) -> Tensor:
        """Unit vectors [B, P] of ids [B, T] whose end token stands at `ends` [B]."""
        x = self.embed_tokens(ids) + self.positions[: ids.shape[1]]
        for layer in self.layers:
            x = layer(x)
        summary = self.post_norm(x[torch.arange(len(ids)), ends])
        return F.normalize(self.projection(summary), dim=-1)


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """What a scene holds, in random order: `blue star, number 407, red circle`."""
    parts = [f"{item.colour} {item.shape}" for item in scene.objects]
    parts += [f"number {plate.text}" for plate in scene.plates]
    return ", ".join(parts[i] for i in rng.permutation(len(parts)))


def encode_captions(captions: list[str], tokenizer: Tokenizer, spec: TextTowerSpec) -> tuple[Tensor, Tensor]:
    """Ids [B, T] of captions, cut to the tower's length, each with an end token, and where that stands [B]."""
    end = token_id(tokenizer, "<|im_end|>")
    rows = [[*tokenizer.encode(text).ids[: spec.max_position_embeddings - 1], end] for text in captions]
    width = max(len(row) for row in rows)
    ids = torch.tensor([row + [end] * (width - len(row)) for row in rows])
    return ids, torch.tensor([len(row) - 1 for row in rows])


def contrastive_loss(images: Tensor, texts: Tensor, logit_scale: Tensor) -> Tensor:
    """Cross-entropy both ways over the similarities of a batch of pairs [B, P] (InfoNCE)."""
    similarity = logit_scale.clamp(max=_MAX_LOGIT_SCALE).exp() * images @ texts.T
    pairs = torch.arange(len(images))
    return (F.cross_entropy(similarity, pairs) + F.cross_entropy(similarity.T, pairs)) / 2


def retrieval(images: Tensor, texts: Tensor) -> float:
    """Share of images [B, P] whose own caption [B, P] is the most similar of all."""
    return float(((images @ texts.T).argmax(-1) == torch.arange(len(images))).float().mean())


def sincos_positions(rows: int, columns: int, width: int) -> Tensor:
    """Start values [rows * columns, width] of a learned table of positions: sines and cosines of row and column."""
    quarter = width // 4
    angles = torch.arange(max(rows, columns))[:, None] / 100 ** (torch.arange(quarter) / quarter)
    one = torch.cat((angles.sin(), angles.cos()), dim=-1)
    down, across = one[:rows, None].expand(-1, columns, -1), one[None, :columns].expand(rows, -1, -1)
    return torch.cat((down, across), dim=-1).reshape(rows * columns, -1)
