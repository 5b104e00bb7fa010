"""The numbers of the vision side: an encoder, a projector, and what leaves them.

`kind` tells the encoders (and the projectors) apart where they are stored; each has its own fields.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from edgevlm.spec.text import TextTowerSpec


@dataclass(frozen=True)
class FastViTHDSpec:
    """The FastViTHD encoder (FastVLM, arXiv 2412.13303): three convolutional stages, then two with attention."""

    kind: Literal["fastvithd"] = "fastvithd"
    depths: tuple[int, ...] = (2, 12, 24, 4, 2)
    dims: tuple[int, ...] = (96, 192, 384, 768, 1536)
    mlp_ratio: int = 4
    head_dim: int = 32
    squeeze_channels: int = 192

    @property
    def output_size(self) -> int:
        """Channels of an image feature before the projector."""
        return 2 * self.dims[-1]

    @property
    def stride(self) -> int:
        """Input pixels per visual token along one axis."""
        return 1 << (len(self.dims) + 1)


@dataclass(frozen=True)
class VitSpec:
    """A vision transformer with learned positions: CLIP's, SigLIP's, InternViT, EVA.

    Attributes:
        num_hidden_layers: layers that run; those behind the features that a model takes are not part of it.
        grid: patches along one side; the learned table has one row for each patch (and the class token).
        class_token: a learned token goes before the patches.
        keep_class_token: it is among the features, first.
        patch_bias: the patch convolution has a bias.
        qkv_bias: queries, keys and values have one.
        pre_norm: LayerNorm on the embeddings (CLIP's `pre_layrnorm`).
        post_norm: LayerNorm on the features.
        layer_scale: a learned factor a channel on each branch (InternViT's `lambda_1`, `lambda_2`).
    """

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    patch_size: int
    grid: int
    norm_eps: float
    kind: Literal["vit"] = "vit"
    activation: Literal["gelu", "gelu_tanh", "quick_gelu"] = "gelu"
    class_token: bool = False
    keep_class_token: bool = False
    patch_bias: bool = True
    qkv_bias: bool = True
    pre_norm: bool = False
    post_norm: bool = False
    layer_scale: bool = False

    @property
    def output_size(self) -> int:
        """Channels of an image feature."""
        return self.hidden_size

    @property
    def stride(self) -> int:
        """Input pixels per patch along one axis."""
        return self.patch_size


@dataclass(frozen=True)
class Qwen2VisionSpec:
    """Qwen2-VL's vision transformer (arXiv 2409.12191): patches of an image of any size, with rotary positions.

    Attributes:
        merge_size: a square of so many by so many patches becomes one feature.
        frames: a patch holds so many frames; an image is one, repeated.
    """

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    patch_size: int
    merge_size: int
    frames: int
    kind: Literal["qwen2_vision"] = "qwen2_vision"
    activation: Literal["gelu", "gelu_tanh", "quick_gelu"] = "quick_gelu"
    rope_theta: float = 1e4
    norm_eps: float = 1e-6

    @property
    def patch_values(self) -> int:
        """Numbers in a patch."""
        return 3 * self.frames * self.patch_size**2

    @property
    def output_size(self) -> int:
        """Channels of an image feature."""
        return self.hidden_size * self.merge_size**2

    @property
    def stride(self) -> int:
        """Input pixels per feature along one axis."""
        return self.patch_size * self.merge_size


@dataclass(frozen=True)
class CompressedVitSpec:
    """A vision transformer, then learned queries that look at all its patches (LLaVA-Mini, arXiv 2501.03895).

    The features are those of all parts of the image and, behind them, those of the queries.

    Attributes:
        vit: sees each part.
        query_grid: the queries are a square of so many by so many.
        query_heads: attention heads of the queries.
        split: the image is seen in so many by so many parts (which the queries look at), and then whole; with 1 it is
            seen whole alone.
    """

    vit: VitSpec
    query_grid: int
    query_heads: int
    kind: Literal["compressed_vit"] = "compressed_vit"
    split: int = 1

    @property
    def queries(self) -> int:
        """Features of the queries."""
        return self.query_grid**2

    @property
    def parts(self) -> int:
        """Squares that the vision transformer sees of an image."""
        return 1 if self.split == 1 else self.split**2 + 1

    @property
    def output_size(self) -> int:
        """Channels of an image feature."""
        return self.vit.output_size

    @property
    def stride(self) -> int:
        """Input pixels per patch along one axis."""
        return self.vit.stride


EncoderSpec: TypeAlias = FastViTHDSpec | VitSpec | Qwen2VisionSpec | CompressedVitSpec


@dataclass(frozen=True)
class MlpProjectorSpec:
    """Two linear layers with an exact GELU between them (LLaVA's `mlp2x_gelu`), perhaps behind a LayerNorm."""

    hidden_size: int
    kind: Literal["mlp"] = "mlp"
    input_norm: bool = False


@dataclass(frozen=True)
class LinearProjectorSpec:
    """One linear layer."""

    bias: bool
    kind: Literal["linear"] = "linear"


@dataclass(frozen=True)
class QFormerSpec:
    """The Q-Former of BLIP-2 (arXiv 2301.12597) behind a LayerNorm, and one linear layer behind it.

    Attributes:
        num_queries: learned queries, each of which becomes one image embedding.
        cross_attention_every: of so many layers the first attends to the features.
    """

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_queries: int
    kind: Literal["qformer"] = "qformer"
    cross_attention_every: int = 2
    norm_eps: float = 1e-12
    feature_norm_eps: float = 1e-5


@dataclass(frozen=True)
class LdpSpec:
    """MobileVLM's light projector: two linear layers, then convolutions that make the map of features smaller.

    Version 1 (arXiv 2312.16886) halves its sides in the second of two inverted residuals; version 2 (arXiv 2402.03766)
    takes means down to `side` by `side` and adds a depthwise convolution.

    Attributes:
        squeeze_channels: of the squeeze-and-excitation of version 1.
        side: of the map that leaves version 2.
    """

    version: Literal[1, 2]
    kind: Literal["ldp"] = "ldp"
    squeeze_channels: int = 0
    side: int = 12

    def tokens(self, grid: int) -> int:
        """Image embeddings of `grid` by `grid` features."""
        return (grid + 1) // 2 * ((grid + 1) // 2) if self.version == 1 else self.side**2


ProjectorSpec: TypeAlias = MlpProjectorSpec | LinearProjectorSpec | QFormerSpec | LdpSpec


@dataclass(frozen=True)
class ReducerSpec:
    """What makes the embeddings of a square fewer, inside the vision graph (`edgevlm.pruning.tokens`).

    Attributes:
        name: of the method.
        keep: embeddings that are left.
        options: names and values of the method's options.
        shared: `keep` is a mean: the graph takes all tiles of an image at once and shares the tokens out among them.
        text: what encodes the question, for methods that read it; None for those that look at the image alone.
    """

    name: str
    keep: int
    options: tuple[tuple[str, str], ...] = ()
    shared: bool = False
    text: TextTowerSpec | None = None


@dataclass(frozen=True)
class VisionSpec:
    """The vision side: a square of `image_size` pixels in, `image_tokens` embeddings out.

    Where images keep their shape (`PreprocessSpec.patches`) this is the largest square.

    Attributes:
        pixel_shuffle: features of a square of so many by so many patches are joined into one before the projector.
        reducer: leaves fewer embeddings; None keeps all.
    """

    encoder: EncoderSpec
    projector: ProjectorSpec
    image_size: int
    image_tokens: int
    pixel_shuffle: int = 1
    reducer: ReducerSpec | None = None

    @property
    def stride(self) -> int:
        """Input pixels per visual token along one axis."""
        return self.encoder.stride * self.pixel_shuffle

    @property
    def grid_side(self) -> int:
        """Visual tokens along one axis, before any are left out."""
        return self.image_size // self.stride

    @property
    def feature_size(self) -> int:
        """Channels that enter the projector."""
        return self.encoder.output_size * self.pixel_shuffle**2

    def tokens_at(self, resolution: int) -> int:
        """Image embeddings of a square of `resolution` pixels a side."""
        if self.reducer is not None:
            return self.reducer.keep
        if isinstance(self.projector, QFormerSpec):
            return self.projector.num_queries
        if isinstance(self.projector, LdpSpec):
            return self.projector.tokens(resolution // self.stride)
        patches = (resolution // self.stride) ** 2
        if isinstance(encoder := self.encoder, CompressedVitSpec):
            return encoder.parts * patches + encoder.queries
        return patches + 1 if isinstance(encoder, VitSpec) and encoder.keep_class_token else patches

    @property
    def text(self) -> TextTowerSpec | None:
        """What encodes the question, where the vision graph reads it beside the pixels."""
        return None if self.reducer is None else self.reducer.text

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the pixels of one image; its parts lie one below the other."""
        parts = self.encoder.parts if isinstance(self.encoder, CompressedVitSpec) else 1
        return 3, parts * self.image_size, self.image_size
