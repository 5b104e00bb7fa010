"""The vision transformer (arXiv 2010.11929) in the forms that VLMs use: CLIP's, SigLIP's, InternViT, EVA.

In: pixels `[B, 3, R, R]`, normalised. Out: features `[B, N, C]`, the class token first where it is kept, and what a
reducer of tokens asks for (`edgevlm.models.taps`). What differs is a field of `VitSpec`. The sequence is always:
patches, (class token), positions, (norm), layers, (norm).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgevlm.models.taps import Record, Taps
from edgevlm.spec import VitSpec


def activate(x: Tensor, kind: str) -> Tensor:
    """GELU: exact, its tanh form, or `x * sigmoid(1.702 x)` (`quick_gelu`, CLIP's)."""
    if kind == "quick_gelu":
        return x * torch.sigmoid(1.702 * x)
    return F.gelu(x, approximate="tanh" if kind == "gelu_tanh" else "none")


class VitAttention(nn.Module):
    """Multi-head self-attention, full unless `causal`."""

    causal = False

    def __init__(self, spec: VitSpec) -> None:
        super().__init__()
        self.heads = spec.num_attention_heads
        self.q_proj = nn.Linear(spec.hidden_size, spec.hidden_size, bias=spec.qkv_bias)
        self.k_proj = nn.Linear(spec.hidden_size, spec.hidden_size, bias=spec.qkv_bias)
        self.v_proj = nn.Linear(spec.hidden_size, spec.hidden_size, bias=spec.qkv_bias)
        self.out_proj = nn.Linear(spec.hidden_size, spec.hidden_size)

    def forward(self, x: Tensor, record: Record | None = None) -> Tensor:
        """Keeps the shape `[B, N, C]`."""
        batch, _, channels = x.shape

        def split(y: Tensor) -> Tensor:
            return y.view(batch, -1, self.heads, channels // self.heads).transpose(1, 2)

        query, key = split(self.q_proj(x)), split(self.k_proj(x))
        if record is not None:
            record(query, key)
        mixed = F.scaled_dot_product_attention(query, key, split(self.v_proj(x)), is_causal=self.causal)
        return self.out_proj(mixed.transpose(1, 2).reshape(x.shape))  # type: ignore[no-any-return]


class VitLayer(nn.Module):
    """Attention and MLP, each behind a norm and around the residual stream."""

    def __init__(self, spec: VitSpec) -> None:
        super().__init__()
        self.activation = spec.activation
        self.norm1 = nn.LayerNorm(spec.hidden_size, eps=spec.norm_eps)
        self.attention = VitAttention(spec)
        self.norm2 = nn.LayerNorm(spec.hidden_size, eps=spec.norm_eps)
        self.fc1 = nn.Linear(spec.hidden_size, spec.intermediate_size)
        self.fc2 = nn.Linear(spec.intermediate_size, spec.hidden_size)
        if spec.layer_scale:
            self.scale1 = nn.Parameter(torch.ones(spec.hidden_size))
            self.scale2 = nn.Parameter(torch.ones(spec.hidden_size))
        self.scaled = spec.layer_scale

    def forward(self, x: Tensor, record: Record | None = None) -> Tensor:
        """Keeps the shape `[B, N, C]`."""
        mixed = self.attention(self.norm1(x), record)
        x = x + (mixed * self.scale1 if self.scaled else mixed)
        hidden = self.fc2(activate(self.fc1(self.norm2(x)), self.activation))
        return x + hidden * self.scale2 if self.scaled else x + hidden  # type: ignore[no-any-return]


class Vit(nn.Module):
    """Pixels to features."""

    def __init__(self, spec: VitSpec) -> None:
        super().__init__()
        self.spec = spec
        width = spec.hidden_size
        self.patch = nn.Conv2d(3, width, spec.patch_size, spec.patch_size, bias=spec.patch_bias)
        if spec.class_token:
            self.class_token = nn.Parameter(torch.zeros(width))
        self.positions = nn.Parameter(torch.zeros(spec.grid**2 + spec.class_token, width))
        self.pre_norm = nn.LayerNorm(width, eps=spec.norm_eps) if spec.pre_norm else nn.Identity()
        self.layers = nn.ModuleList([VitLayer(spec) for _ in range(spec.num_hidden_layers)])
        self.post_norm = nn.LayerNorm(width, eps=spec.norm_eps) if spec.post_norm else nn.Identity()

    def forward(self, pixels: Tensor, taps: Taps | None = None) -> Tensor:
        """Pixels `[B, 3, R, R]` to features `[B, N, C]`; leaves in `taps` what it asks for."""
        x = self.patch(pixels).flatten(2).transpose(1, 2)
        if self.spec.class_token:
            x = torch.cat((self.class_token.expand(x.shape[0], 1, -1), x), dim=1)
        x = self.pre_norm(x + self.positions)
        for index, layer in enumerate(self.layers):
            x = layer(x) if taps is None else layer(x, taps.recorder(index - len(self.layers)))
        if taps is not None and self.spec.class_token:
            taps.class_feature = self.post_norm(x[:, :1])
        if self.spec.class_token and not self.spec.keep_class_token:
            x = x[:, 1:]
        return self.post_norm(x)  # type: ignore[no-any-return]


def resize_positions(table: Tensor, grid: int, class_tokens: int) -> Tensor:
    """A table of positions `[class_tokens + g * g, C]` for `grid` by `grid` patches, bicubic; class rows stay."""
    first, patches = table[:class_tokens], table[class_tokens:]
    side = round(len(patches) ** 0.5)
    if side == grid:
        return table
    image = patches.float().T.reshape(1, -1, side, side)
    resized = F.interpolate(image, size=(grid, grid), mode="bicubic", align_corners=False)
    return torch.cat((first, resized.flatten(2)[0].T.to(table.dtype)))
