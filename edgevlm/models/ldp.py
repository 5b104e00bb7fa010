"""MobileVLM's light downsample projector in both versions (arXiv 2312.16886 and 2402.03766).

In: features `[B, N, C]` of a square map. Out: fewer embeddings `[B, M, H]`, row by row.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from edgevlm.models.fastvithd import ChannelLayerNorm
from edgevlm.spec import LdpSpec


class InvertedResidual(nn.Module):
    """MobileNetV3's block (arXiv 1905.02244) without expansion: depthwise 3x3, squeeze-and-excitation, pointwise."""

    def __init__(self, channels: int, squeeze_channels: int, stride: int) -> None:
        super().__init__()
        self.residual = stride == 1
        self.depthwise = nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False)
        self.norm1 = ChannelLayerNorm(channels)
        self.squeeze = nn.Conv2d(channels, squeeze_channels, 1)
        self.expand = nn.Conv2d(squeeze_channels, channels, 1)
        self.pointwise = nn.Conv2d(channels, channels, 1, bias=False)
        self.norm2 = ChannelLayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` to the same, or to half the sides."""
        inner: Tensor = F.hardswish(self.norm1(self.depthwise(x)))
        scale = F.hardsigmoid(self.expand(F.relu(self.squeeze(inner.mean((2, 3), keepdim=True)))))
        inner = self.norm2(self.pointwise(inner * scale))
        return x + inner if self.residual else inner


class LdpProjector(nn.Module):
    """Two linear layers with an exact GELU between them, then the map made smaller."""

    def __init__(self, spec: LdpSpec, in_features: int, out_features: int) -> None:
        super().__init__()
        self.spec = spec
        self.linear_1 = nn.Linear(in_features, out_features)
        self.linear_2 = nn.Linear(out_features, out_features)
        if spec.version == 1:
            strides = (1, 2)
            self.blocks = nn.ModuleList(InvertedResidual(out_features, spec.squeeze_channels, s) for s in strides)
        else:
            self.position = nn.Conv2d(out_features, out_features, 3, 1, 1, groups=out_features)

    def forward(self, features: Tensor) -> Tensor:
        """Features `[B, N, C]` to embeddings `[B, M, H]`."""
        x: Tensor = self.linear_2(F.gelu(self.linear_1(features)))
        side = round(x.shape[1] ** 0.5)
        x = x.transpose(1, 2).reshape(x.shape[0], -1, side, side)
        if self.spec.version == 1:
            for block in self.blocks:
                x = block(x)
        else:
            x = F.adaptive_avg_pool2d(x, self.spec.side)
            x = x + self.position(x)
        return x.flatten(2).transpose(1, 2)
