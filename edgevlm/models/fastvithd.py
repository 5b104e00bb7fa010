"""FastViTHD, the hybrid convolution and attention encoder of FastVLM (arXiv 2412.13303), as published for inference.

In: RGB pixels `[B, 3, H, W]` in 0..1, H and W multiples of the stride (64). Out: image features `[B, N, C]` with
N = (H/64)(W/64) in row-major order and C twice the last width. Parameter names are those of the published checkpoint
behind its `vision_tower` prefix, so that a loader only strips that prefix. The published weights are reparameterised
(one convolution per mixer); only the BatchNorm inside each feed-forward block is left, and `fold_batchnorm` folds it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgevlm.models.taps import Record, Taps
from edgevlm.spec import FastViTHDSpec

BATCHNORM_EPS = 1e-5


class ReparamConv(nn.Module):
    """A convolution that training folded from several branches; named `reparam_conv` in the checkpoint."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.reparam_conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` to `[B, C', H/stride, W/stride]`."""
        return self.reparam_conv(x)  # type: ignore[no-any-return]


class DepthwiseNorm(nn.Module):
    """Depthwise 7x7 convolution followed by BatchNorm, or by nothing once that is folded into it."""

    def __init__(self, channels: int, *, batchnorm: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 7, padding=3, groups=channels, bias=not batchnorm)
        self.bn = nn.BatchNorm2d(channels, eps=BATCHNORM_EPS) if batchnorm else None

    def forward(self, x: Tensor) -> Tensor:
        """Keeps the shape `[B, C, H, W]`."""
        x = self.conv(x)
        return x if self.bn is None else self.bn(x)


class ConvFeedForward(nn.Module):
    """Depthwise 7x7, then two 1x1 convolutions with an exact GELU between them."""

    def __init__(self, channels: int, ratio: int, *, batchnorm: bool) -> None:
        super().__init__()
        self.conv = DepthwiseNorm(channels, batchnorm=batchnorm)
        self.fc1 = nn.Conv2d(channels, channels * ratio, 1)
        self.fc2 = nn.Conv2d(channels * ratio, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Keeps the shape `[B, C, H, W]`."""
        return self.fc2(F.gelu(self.fc1(self.conv(x))))  # type: ignore[no-any-return]


class RepMixerBlock(nn.Module):
    """x <- depthwise 3x3(x); x <- x + layer_scale * FFN(x)."""

    def __init__(self, channels: int, ratio: int, *, batchnorm: bool) -> None:
        super().__init__()
        self.token_mixer = ReparamConv(channels, channels, 3, groups=channels)
        self.convffn = ConvFeedForward(channels, ratio, batchnorm=batchnorm)
        self.layer_scale = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Keeps the shape `[B, C, H, W]`."""
        x = self.token_mixer(x)
        return x + self.layer_scale * self.convffn(x)  # type: ignore[no-any-return]


class ChannelLayerNorm(nn.Module):
    """LayerNorm over the channels of a `[B, C, H, W]` tensor, eps inside the square root."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Keeps the shape `[B, C, H, W]`."""
        normed = F.layer_norm(x.movedim(1, -1), self.weight.shape, self.weight, self.bias, 1e-5)
        return normed.movedim(-1, 1)


class SpatialAttention(nn.Module):
    """Multi-head self-attention over all positions of a `[B, C, H, W]` map."""

    def __init__(self, channels: int, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.heads = channels // head_dim
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor, record: Record | None = None) -> Tensor:
        """Keeps the shape `[B, C, H, W]`."""
        channels, height, width = x.shape[1], x.shape[2], x.shape[3]
        tokens = x.flatten(2).transpose(1, 2)
        qkv = self.qkv(tokens).reshape(-1, height * width, 3, self.heads, self.head_dim)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        if record is not None:
            record(query, key)
        mixed = F.scaled_dot_product_attention(query, key, value)
        mixed = self.proj(mixed.transpose(1, 2).reshape(-1, height * width, channels))
        return mixed.transpose(1, 2).reshape(-1, channels, height, width)  # type: ignore[no-any-return]


class AttentionBlock(nn.Module):
    """x <- x + layer_scale_1 * MHSA(norm(x)); x <- x + layer_scale_2 * FFN(x)."""

    def __init__(self, channels: int, ratio: int, head_dim: int, *, batchnorm: bool) -> None:
        super().__init__()
        self.norm = ChannelLayerNorm(channels)
        self.token_mixer = SpatialAttention(channels, head_dim)
        self.convffn = ConvFeedForward(channels, ratio, batchnorm=batchnorm)
        self.layer_scale_1 = nn.Parameter(torch.ones(channels, 1, 1))
        self.layer_scale_2 = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x: Tensor, record: Record | None = None) -> Tensor:
        """Keeps the shape `[B, C, H, W]`."""
        x = x + self.layer_scale_1 * self.token_mixer(self.norm(x), record)
        return x + self.layer_scale_2 * self.convffn(x)  # type: ignore[no-any-return]


class AttentionStage(nn.Sequential):
    """Attention blocks, one after the other."""

    def forward(self, x: Tensor, taps: Taps | None = None) -> Tensor:
        """Keeps the shape `[B, C, H, W]`."""
        for index, block in enumerate(self):
            x = block(x) if taps is None else block(x, taps.recorder(index - len(self)))
        return x


class LargeKernelConv(nn.Module):
    """Strided grouped 7x7 that doubles the channels; named `lkb_reparam` in the checkpoint."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.lkb_reparam = nn.Conv2d(in_channels, out_channels, 7, 2, padding=3, groups=in_channels)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` to `[B, C', H/2, W/2]`."""
        return self.lkb_reparam(x)  # type: ignore[no-any-return]


class Downsample(nn.Module):
    """Halve the map and double the channels, between two stages."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.proj = nn.ModuleList(
            [LargeKernelConv(in_channels, out_channels), ReparamConv(out_channels, out_channels, 1)]
        )

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` to `[B, C', H/2, W/2]`."""
        for conv in self.proj:
            x = F.gelu(conv(x))
        return x


class SqueezeExcite(nn.Module):
    """Scale each channel by a gate computed from the mean of all channels."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.expand = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Keeps the shape `[B, C, H, W]`."""
        gate = self.expand(F.relu(self.reduce(x.mean((2, 3), keepdim=True))))
        return x * torch.sigmoid(gate)


class Expansion(nn.Module):
    """The last layer: grouped 3x3 to twice the channels, squeeze and excite, GELU."""

    def __init__(self, in_channels: int, out_channels: int, squeezed: int) -> None:
        super().__init__()
        self.reparam_conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, groups=in_channels)
        self.se = SqueezeExcite(out_channels, squeezed)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` to `[B, 2C, H, W]`."""
        return F.gelu(self.se(self.reparam_conv(x)))


class FastViTHD(nn.Module):
    """The encoder. `batchnorm=True` keeps the BatchNorm of the published file (training); exports fold it."""

    def __init__(self, spec: FastViTHDSpec, *, batchnorm: bool = False) -> None:
        super().__init__()
        self.spec = spec
        dims = spec.dims
        self.patch_embed = nn.ModuleList(
            [
                ReparamConv(3, dims[0], 3, stride=2),
                ReparamConv(dims[0], dims[0], 3, stride=2, groups=dims[0]),
                ReparamConv(dims[0], dims[0], 1),
            ]
        )
        network: list[nn.Module] = []
        for index, (depth, dim) in enumerate(zip(spec.depths, dims, strict=True)):
            attention = index >= 3
            if index:
                network.append(Downsample(dims[index - 1], dim))
            if attention:
                network.append(ReparamConv(dim, dim, 7, groups=dim))
                size = (dim, spec.mlp_ratio, spec.head_dim)
                network.append(AttentionStage(*(AttentionBlock(*size, batchnorm=batchnorm) for _ in range(depth))))
            else:
                blocks = (RepMixerBlock(dim, spec.mlp_ratio, batchnorm=batchnorm) for _ in range(depth))
                network.append(nn.Sequential(*blocks))
        self.network = nn.ModuleList(network)
        self.conv_exp = Expansion(dims[-1], spec.output_size, spec.squeeze_channels)

    def forward(self, pixels: Tensor, taps: Taps | None = None) -> Tensor:
        """Pixels `[B, 3, H, W]` to features `[B, N, C]`; leaves in `taps` what it asks for of the last stage.

        Only there the map is that of the features, since the layer behind it keeps their places.
        """
        x = pixels
        for conv in self.patch_embed:
            x = F.gelu(conv(x))
        *before, last = self.network
        for block in before:
            x = block(x)
        x = last(x, taps)
        return self.conv_exp(x).flatten(2).transpose(1, 2)  # type: ignore[no-any-return]


def fold_batchnorm(tensors: dict[str, Tensor], conv: str) -> None:
    """Fold the BatchNorm beside `conv` (`...convffn.conv`) into that convolution, in place in `tensors`.

    w' = w * gamma / sqrt(var + eps), b' = beta - mean * gamma / sqrt(var + eps), computed in float32 and stored in
    the dtype of the weight.
    """
    norm = f"{conv}.bn"
    gamma, beta, mean, variance = (
        tensors.pop(f"{norm}.{name}").float() for name in ("weight", "bias", "running_mean", "running_var")
    )
    tensors.pop(f"{norm}.num_batches_tracked", None)
    scale = gamma / torch.sqrt(variance + BATCHNORM_EPS)
    weight = tensors[f"{conv}.conv.weight"]
    tensors[f"{conv}.conv.weight"] = (weight.float() * scale[:, None, None, None]).to(weight.dtype)
    tensors[f"{conv}.conv.bias"] = (beta - mean * scale).to(weight.dtype)
