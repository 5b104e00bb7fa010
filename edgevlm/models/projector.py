"""Projectors: from features of the encoder `[B, N, C]` to image embeddings `[B, M, H]`."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from edgevlm.models.ldp import LdpProjector
from edgevlm.models.qformer import QFormerProjector
from edgevlm.spec import LdpSpec, LinearProjectorSpec, MlpProjectorSpec, QFormerSpec, VisionSpec


class MlpProjector(nn.Module):
    """Two linear layers with an exact GELU between them, behind a LayerNorm where the model has one."""

    def __init__(self, spec: MlpProjectorSpec, in_features: int, out_features: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(in_features) if spec.input_norm else nn.Identity()
        self.linear_1 = nn.Linear(in_features, spec.hidden_size)
        self.linear_2 = nn.Linear(spec.hidden_size, out_features)

    def forward(self, features: Tensor) -> Tensor:
        """Features `[B, N, C]` to embeddings `[B, N, H]`."""
        return self.linear_2(F.gelu(self.linear_1(self.norm(features))))  # type: ignore[no-any-return]


class LinearProjector(nn.Module):
    """One linear layer."""

    def __init__(self, spec: LinearProjectorSpec, in_features: int, out_features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features, bias=spec.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Features `[B, N, C]` to embeddings `[B, N, H]`."""
        return self.linear(features)  # type: ignore[no-any-return]


def build_projector(vision: VisionSpec, hidden_size: int) -> nn.Module:
    """An uninitialised projector from the encoder's features to embeddings of `hidden_size` channels."""
    spec = vision.projector
    if isinstance(spec, MlpProjectorSpec):
        return MlpProjector(spec, vision.feature_size, hidden_size)
    if isinstance(spec, QFormerSpec):
        return QFormerProjector(spec, vision.feature_size, hidden_size)
    if isinstance(spec, LdpSpec):
        return LdpProjector(spec, vision.feature_size, hidden_size)
    return LinearProjector(spec, vision.feature_size, hidden_size)


def pixel_shuffle(features: Tensor, factor: int) -> Tensor:
    """Join squares of `factor` by `factor` neighbours of a square map: `[B, N, C]` to `[B, N / f^2, C f^2]`.

    A joined feature holds its patches row by row (Idefics3, arXiv 2408.12637; InternVL's second version).
    """
    batch, count, channels = features.shape
    side = round(count**0.5)
    small = side // factor
    x = features.view(batch, small, factor, small, factor, channels).permute(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, small * small, factor * factor * channels)
