"""The trainable whole of a nano model, whatever its family: encoder, two-layer projector, decoder.

`NanoVLM` is built from a `NanoSpec` (`edgevlm.zoo.families` has those of the shipped models). `heads`, `place` and
`seen_place` are auxiliary readers of the visual tokens and of the text, which training drops afterwards; a CLIP-shaped
encoder also has a text tower beside it.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgevlm.models.decoder import Decoder, DecoderLayer, rotary_tables, rotate
from edgevlm.models.fastvithd import FastViTHD
from edgevlm.models.fusion import Fusion
from edgevlm.models.llava_mini_vision import Compressor
from edgevlm.models.qformer import QFormerProjector
from edgevlm.models.vit import Vit
from edgevlm.spec import CompressedVitSpec, DecoderSpec, FastViTHDSpec, FusionSpec, QFormerSpec, VitSpec
from edgevlm.zoo.clip import ClipVision, TextTower, TextTowerSpec
from edgevlm.zoo.drawing import COLOURS, SHAPES
from edgevlm.zoo.tokenizer import SYSTEM_PROMPT


@dataclass(frozen=True)
class PromptPieces:
    """The deployed prompt before and behind the image (with `{question}`), and the token that ends an answer."""

    before: str
    behind: str
    end: str


CHATML = PromptPieces(
    before=f"<|im_start|>system\n{SYSTEM_PROMPT}<|im_end|>\n<|im_start|>user\n",
    behind="\n{question}<|im_end|>\n<|im_start|>assistant\n",
    end="<|im_end|>",
)


@dataclass(frozen=True)
class NanoSpec:
    """Sizes of one trainable model, how its pixels are normalised, and its prompt.

    Attributes:
        text: sizes of the text tower that a CLIP-shaped encoder is trained with.
        fusion: of a pre-fusion, whose compressor is part of the encoder.
        queries: of a Q-Former in the place of the two-layer projector. Each query is taught to speak for one region
            of the image, twice as many regions side by side as above one another.
        pointing: decoder heads (layer, head) that learn where to look from `pointers` of a batch: a noun at the thing
            that it names, then the end of the prompt at the first noun and at the last. In front of each look there
            must be an MLP that has seen what the one before it found, so it is a layer later where attention and MLP
            are parallel.
    """

    encoder: FastViTHDSpec | VitSpec | CompressedVitSpec
    decoder: DecoderSpec
    image_size: int
    text: TextTowerSpec | None = None
    fusion: FusionSpec | None = None
    queries: QFormerSpec | None = None
    pointing: tuple[tuple[int, int], ...] = ((1, 0), (2, 0), (2, 1))
    prompt: PromptPieces = CHATML
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)

    @property
    def grid(self) -> int:
        """Features of the encoder along one side."""
        return self.image_size // self.encoder.stride

    @property
    def regions(self) -> tuple[int, int]:
        """Rows and columns of the image embeddings, each of which tells what lies in its part of the image."""
        if self.queries is None:
            return self.grid, self.grid
        rows = math.isqrt(self.queries.num_queries // 2)
        return rows, 2 * rows

    @property
    def prompt_tokens(self) -> int:
        """Positions of the image in the decoder's prompt."""
        return self.fusion.image_tokens if self.fusion else math.prod(self.regions)


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
        self.features_norm = nn.Identity() if isinstance(spec.encoder, FastViTHDSpec) else nn.LayerNorm(features)
        self.heads = nn.Linear(features, sum(HEAD_SIZES.values()))
        self.projector = (
            QFormerProjector(spec.queries, features, hidden)
            if spec.queries
            else nn.Sequential(nn.Linear(features, hidden), nn.GELU(), nn.Linear(hidden, hidden))
        )
        self.decoder = Decoder(spec.decoder)
        self.place = nn.Linear(hidden, 2 * len(spec.pointing))
        self.seen_place = nn.Linear(hidden, 2)
        self.text = TextTower(spec.text) if spec.text else None
        self.compressor = Compressor(spec.encoder) if isinstance(spec.encoder, CompressedVitSpec) else None
        self.fusion = Fusion(spec.fusion, spec.decoder) if spec.fusion else None
        self.region_heads = nn.Linear(hidden, sum(HEAD_SIZES.values())) if spec.queries else None

    def read(self, features: Tensor) -> dict[str, Tensor]:
        """Auxiliary outputs [B, N, size] of the visual features [B, N, C]; a class token before them is left out."""
        return _split(self.heads(self.features_norm(features[:, -(self.spec.grid**2) :])))

    def read_regions(self, projected: Tensor) -> dict[str, Tensor]:
        """The same of a Q-Former's embeddings [B, Q, H]."""
        assert self.region_heads is not None
        return _split(self.region_heads(projected))

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
                at the target, in the layer and head `pointing[slot]` of the spec?
        """
        decoder = self.decoder
        rotary = rotary_tables(positions, decoder.spec.rotary_dim, decoder.spec.rope_theta)
        at = positions.new_zeros(0, 4) if pointers is None else pointers
        pointing, places = x.new_zeros(len(at)), x.new_zeros(len(at), 2)
        for index, layer in enumerate(decoder.layers):
            before = x
            x, _ = layer(before, rotary, None, mask)
            for slot, (where, head) in enumerate(self.spec.pointing):
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
        """Logits [..., V] of the projected visual tokens read as if they were words (logit lens), by the embedding:
        what a question names is found among them by its row there, which an untied head need not share."""
        decoder = self.decoder
        return F.linear(decoder.norm(projected), decoder.embed_tokens.weight)


def _vision(spec: NanoSpec) -> FastViTHD | Vit | ClipVision:
    if isinstance(spec.encoder, FastViTHDSpec):
        return FastViTHD(spec.encoder, batchnorm=True)
    vit = spec.encoder.vit if isinstance(spec.encoder, CompressedVitSpec) else spec.encoder
    return ClipVision(vit, spec.text.projection_size) if spec.text else Vit(vit)


def _split(columns: Tensor) -> dict[str, Tensor]:
    return dict(zip(HEAD_SIZES, torch.split(columns, list(HEAD_SIZES.values()), dim=-1), strict=True))


def _attention(layer: nn.Module, head: int, x: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
    """Log attention probabilities [B, T, T] of one head of a decoder layer, for its input [B, T, H]."""
    assert isinstance(layer, DecoderLayer)
    normed, attention = layer.input_layernorm(x), layer.self_attn
    spec = attention.spec
    width, group = spec.head_dim, spec.num_attention_heads // spec.num_key_value_heads

    def project(linear: nn.Linear, norm: nn.Module, index: int) -> Tensor:
        part = slice(index * width, (index + 1) * width)
        bias = None if linear.bias is None else linear.bias[part]
        return rotate(norm(F.linear(normed, linear.weight[part], bias))[:, None], *rotary)[:, 0]

    query = project(attention.q_proj, attention.q_norm, head)
    key = project(attention.k_proj, attention.k_norm, head // group)
    scores = query @ key.transpose(1, 2) / math.sqrt(width)
    return scores.masked_fill(~mask[:, 0], -math.inf).log_softmax(-1)
