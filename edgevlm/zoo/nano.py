"""The trainable whole of a nano model, whatever its family: encoder, two-layer projector, decoder.

`NanoVLM` is built from a `NanoSpec` (`edgevlm.zoo.families` has those of the shipped models). `heads`, `place` and
`seen_place` are auxiliary readers of the visual tokens and of the text, which training drops afterwards; a CLIP-shaped
encoder also has a text tower beside it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgevlm.models.decoder import Decoder, DecoderLayer, rotary_tables, rotate
from edgevlm.models.fastvithd import FastViTHD
from edgevlm.models.fusion import Fusion
from edgevlm.models.llava_mini_vision import Compressor
from edgevlm.models.vit import VitLayer
from edgevlm.spec import CompressedVitSpec, DecoderSpec, FastViTHDSpec, FusionSpec, VitSpec
from edgevlm.zoo.clip import ClipVision, TextTower, TextTowerSpec, sincos_positions
from edgevlm.zoo.drawing import COLOURS, SHAPES


@dataclass(frozen=True)
class NanoSpec:
    """Sizes of one trainable model, and how its pixels are normalised.

    `text` are the sizes of the text tower that a CLIP-shaped encoder is trained with; `fusion` those of a pre-fusion,
    whose compressor is part of the encoder.
    """

    encoder: FastViTHDSpec | VitSpec | CompressedVitSpec
    decoder: DecoderSpec
    image_size: int
    text: TextTowerSpec | None = None
    fusion: FusionSpec | None = None
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)

    @property
    def grid(self) -> int:
        """Visual tokens along one side."""
        return self.image_size // self.encoder.stride

    @property
    def prompt_tokens(self) -> int:
        """Positions of the image in the decoder's prompt."""
        return self.fusion.image_tokens if self.fusion else self.grid**2


# Decoder heads (layer, head) that learn where to look from `pointers` of a batch: a noun at the thing that it names,
# then the end of the prompt at the first noun and at the last.
POINTING = ((1, 0), (2, 0), (2, 1))

# The auxiliary heads, in the order of their columns: what lies in this grid cell, and where.
HEAD_SIZES = {
    "kind": 3,
    "shape": len(SHAPES),
    "colour": len(COLOURS),
    "digit": 10,
    "place": 3,
    "centre": 2,
}


class NanoVLM(nn.Module):
    """Encoder, projector, decoder, auxiliary heads and perhaps a text tower, or a compressor and a pre-fusion."""

    def __init__(self, spec: NanoSpec) -> None:
        super().__init__()
        self.spec = spec
        features, hidden = spec.encoder.output_size, spec.decoder.hidden_size
        self.vision = _vision(spec)
        self.features_norm = nn.LayerNorm(features) if spec.text else nn.Identity()
        self.heads = nn.Linear(features, sum(HEAD_SIZES.values()))
        self.projector = nn.Sequential(nn.Linear(features, hidden), nn.GELU(), nn.Linear(hidden, hidden))
        self.decoder = Decoder(spec.decoder)
        self.place = nn.Linear(hidden, 2 * len(POINTING))
        self.seen_place = nn.Linear(hidden, 2)
        self.text = TextTower(spec.text) if spec.text else None
        self.compressor = Compressor(spec.encoder) if isinstance(spec.encoder, CompressedVitSpec) else None
        self.fusion = Fusion(spec.fusion, spec.decoder) if spec.fusion else None

    def read(self, features: Tensor) -> dict[str, Tensor]:
        """Auxiliary outputs [B, N, size] of the visual features [B, N, C]."""
        columns = self.heads(self.features_norm(features)).split(list(HEAD_SIZES.values()), dim=-1)
        return dict(zip(HEAD_SIZES, columns, strict=True))

    def project(self, features: Tensor) -> Tensor:
        """Image embeddings [B, N, H] of features [B, N, C]; behind them those of the compressor, where there is one."""
        if self.compressor is not None:
            features = torch.cat((features, self.compressor(features)), dim=1)
        return self.projector(features)  # type: ignore[no-any-return]

    def embed(self, projected: Tensor, ids: Tensor) -> Tensor:
        """Embeddings [B, T, H] of ids [B, T], and the image's [B, N, H] where `ids` is -1 (the same N columns in every
        row)."""
        embeds = self.decoder.embed_tokens(ids.clamp(min=0))
        start = int((ids[0] == -1).nonzero()[0])
        return torch.cat((embeds[:, :start], projected, embeds[:, start + projected.shape[1] :]), dim=1)

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        mask: Tensor,
        labelled: Tensor,
        pointers: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Next-token logits [M, V] at the `labelled` positions alone, and what the text made of `pointers`: the
        log-probabilities [P] of looking there, and the place [P, 2] read from the text token after that layer.

        The head over all positions would cost a quarter more.

        Args:
            x: embeddings [B, T, H] of image and text.
            positions: int [B, T].
            mask: bool [B, 1, T, T], true where attention is allowed.
            labelled: bool [B, T].
            pointers: int [P, 4], (slot, row, column, target column): how much does the text token at this column look
                at the target, in the layer and head `POINTING[slot]`?
        """
        decoder = self.decoder
        rotary = rotary_tables(positions, decoder.spec.rotary_dim, decoder.spec.rope_theta)
        at = positions.new_zeros(0, 4) if pointers is None else pointers
        pointing, places = x.new_zeros(len(at)), x.new_zeros(len(at), 2)
        for index, layer in enumerate(decoder.layers):
            before = x
            x, _ = layer(before, rotary, None, mask)
            for slot, (where, head) in enumerate(POINTING):
                chosen = (at[:, 0] == slot).nonzero().flatten()
                if where == index and len(chosen):
                    _, row, column, target = at[chosen].unbind(-1)
                    attention = _attention(layer, head, before, rotary, mask)
                    pointing = pointing.index_put((chosen,), attention[row, column, target])
                    read = self.place(F.rms_norm(x[row, column], x.shape[-1:]))
                    place = read[:, 2 * slot : 2 * slot + 2]
                    places = places.index_put((chosen,), place)
        return decoder.head(decoder.norm(x[labelled])), pointing, places

    def words(self, projected: Tensor) -> Tensor:
        """Logits [..., V] of the projected visual tokens read as if they were words (logit lens)."""
        return self.decoder.head(self.decoder.norm(projected))


def _vision(spec: NanoSpec) -> FastViTHD | ClipVision:
    if isinstance(spec.encoder, FastViTHDSpec):
        return FastViTHD(spec.encoder, batchnorm=True)
    assert spec.text is not None
    vit = spec.encoder.vit if isinstance(spec.encoder, CompressedVitSpec) else spec.encoder
    return ClipVision(vit, spec.text.projection_size)


def _attention(layer: nn.Module, head: int, x: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
    """Log attention probabilities [B, T, T] of one head of a decoder layer, for its input [B, T, H]."""
    assert isinstance(layer, DecoderLayer)
    normed, attention = layer.input_layernorm(x), layer.self_attn
    spec = attention.spec
    width, group = spec.head_dim, spec.num_attention_heads // spec.num_key_value_heads

    def project(linear: nn.Linear, index: int) -> Tensor:
        part = slice(index * width, (index + 1) * width)
        bias = None if linear.bias is None else linear.bias[part]
        return rotate(F.linear(normed, linear.weight[part], bias)[:, None], *rotary)[:, 0]

    query, key = project(attention.q_proj, head), project(attention.k_proj, head // group)
    scores = query @ key.transpose(1, 2) / math.sqrt(width)
    return scores.masked_fill(~mask[:, 0], -math.inf).log_softmax(-1)


def initialise(model: NanoVLM, seed: int) -> None:
    """Start values that keep the variance through every block; seeded.

    Depthwise mixers start as the identity, a ViT's table of positions as sines and cosines; the decoder starts as Qwen2
    does, with a larger embedding (its rows also are the head), queries equal to keys in the first two layers so that
    attention begins as a comparison of contents (in the spirit of arXiv 2305.09828), and residual branches scaled down
    by depth.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor: Tensor, std: float) -> None:
        with torch.no_grad():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * std)

    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            fan_in = module.weight[0].numel()
            mixer = module.groups == module.in_channels == module.out_channels and module.stride == (1, 1)
            if mixer and "convffn" not in name:
                normal(module.weight, 0.1 / math.sqrt(fan_in))
                centre = module.kernel_size[0] // 2
                with torch.no_grad():
                    module.weight[:, 0, centre, centre] += 1.0
            else:
                normal(module.weight, math.sqrt((1.0 if "convffn" in name or "se." in name else 2.0) / fan_in))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            normal(module.weight, 1 / math.sqrt(module.in_features))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            normal(module.weight, 1 / math.sqrt(module.embedding_dim))
    if isinstance(model.vision, ClipVision):
        _initialise_clip(model, normal)
    decoder = model.spec.decoder
    group = decoder.num_attention_heads // decoder.num_key_value_heads
    weights = dict(model.decoder.named_parameters())
    with torch.no_grad():
        for index in range(decoder.num_hidden_layers):
            for branch in ("self_attn.o_proj", "mlp.down_proj"):
                weights[f"layers.{index}.{branch}.weight"].mul_(1 / math.sqrt(2 * decoder.num_hidden_layers))
            if index < 2:
                queries, keys = (weights[f"layers.{index}.self_attn.{p}_proj.weight"] for p in "qk")
                heads = keys.view(-1, decoder.head_dim, decoder.hidden_size).repeat_interleave(group, dim=0)
                queries.copy_(heads.reshape(-1, decoder.hidden_size))


def _initialise_clip(model: NanoVLM, normal: Callable[[Tensor, float], None]) -> None:
    """Both towers: positions, the class token, and residual branches scaled down by depth."""
    vision, text = model.vision, model.text
    assert isinstance(vision, ClipVision)
    assert text is not None
    vit = vision.vit
    normal(vit.class_token, 0.5)
    normal(text.positions, 0.5 / math.sqrt(text.spec.hidden_size))
    with torch.no_grad():
        vit.positions[1:] = sincos_positions(vit.spec.grid, vit.spec.hidden_size)
        for layers in (vit.layers, text.layers):
            for layer in layers:
                assert isinstance(layer, VitLayer)
                layer.attention.out_proj.weight.mul_(1 / math.sqrt(2 * len(layers)))
                layer.fc2.weight.mul_(1 / math.sqrt(2 * len(layers)))
