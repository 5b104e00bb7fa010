"""Qwen2-VL's vision transformer (arXiv 2409.12191): patches of one image, any number of them, to merged features.

In: patches `[P, V]`, the squares that become one feature side by side, and the grid `[1, 3]` they were cut by. Out:
features `[1, P / M, M C]`. Positions are rotary, half of each head by the row and half by the column. An image is a
run of its own, so attention is full. Parameter names follow the published layout.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgevlm.models.decoder import KeyValue, rotary_tables, rotate
from edgevlm.models.vit import activate
from edgevlm.spec import Qwen2VisionSpec


def patch_places(count: int, columns: Tensor | int, merge: int) -> Tensor:
    """Row and column `[count, 2]` of each patch of an image that is `columns` patches wide."""
    index = torch.arange(count)
    square, inside = index // merge**2, index % merge**2
    across = columns // merge
    row, column = square // across, square % across
    return torch.stack((merge * row + inside // merge, merge * column + inside % merge), dim=-1)


class Qwen2VisionAttention(nn.Module):
    """Full multi-head self-attention with rotary positions."""

    def __init__(self, spec: Qwen2VisionSpec) -> None:
        super().__init__()
        self.heads = spec.num_attention_heads
        self.qkv = nn.Linear(spec.hidden_size, 3 * spec.hidden_size)
        self.proj = nn.Linear(spec.hidden_size, spec.hidden_size)

    def forward(self, x: Tensor, rotary: KeyValue) -> Tensor:
        """Keeps the shape `[1, P, C]`."""
        channels = x.shape[-1]

        def split(y: Tensor) -> Tensor:
            return y.view(1, -1, self.heads, channels // self.heads).transpose(1, 2)

        query, key, value = map(split, self.qkv(x).split(channels, dim=-1))
        mixed = F.scaled_dot_product_attention(rotate(query, *rotary), rotate(key, *rotary), value)
        return self.proj(mixed.transpose(1, 2).reshape(1, -1, channels))  # type: ignore[no-any-return]


class Qwen2VisionMlp(nn.Module):
    """fc2(activation(fc1(x)))."""

    def __init__(self, spec: Qwen2VisionSpec) -> None:
        super().__init__()
        self.activation = spec.activation
        self.fc1 = nn.Linear(spec.hidden_size, spec.intermediate_size)
        self.fc2 = nn.Linear(spec.intermediate_size, spec.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """Keeps the shape `[1, P, C]`."""
        return self.fc2(activate(self.fc1(x), self.activation))  # type: ignore[no-any-return]


class Qwen2VisionBlock(nn.Module):
    """Attention and MLP, each behind a norm and around the residual stream."""

    def __init__(self, spec: Qwen2VisionSpec) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(spec.hidden_size, eps=spec.norm_eps)
        self.norm2 = nn.LayerNorm(spec.hidden_size, eps=spec.norm_eps)
        self.attn = Qwen2VisionAttention(spec)
        self.mlp = Qwen2VisionMlp(spec)

    def forward(self, x: Tensor, rotary: KeyValue) -> Tensor:
        """Keeps the shape `[1, P, C]`."""
        x = x + self.attn(self.norm1(x), rotary)
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class Qwen2Vision(nn.Module):
    """Patches to features."""

    def __init__(self, spec: Qwen2VisionSpec) -> None:
        super().__init__()
        self.spec = spec
        # The published kernel is a convolution over whole patches; on patches cut before it is a product.
        self.patch_embed = nn.Linear(spec.patch_values, spec.hidden_size, bias=False)
        self.blocks = nn.ModuleList([Qwen2VisionBlock(spec) for _ in range(spec.num_hidden_layers)])
        self.ln_q = nn.LayerNorm(spec.hidden_size, eps=spec.norm_eps)

    def forward(self, patches: Tensor, grid: Tensor) -> Tensor:
        """Patches `[P, V]` of a grid `[1, 3]` (time, height, width) to features `[1, P / M, M C]`."""
        spec = self.spec
        places = patch_places(patches.shape[0], grid[0, 2], spec.merge_size)
        by_axis = rotary_tables(places, spec.hidden_size // spec.num_attention_heads // 2, spec.rope_theta)
        cos, sin = (table.flatten(1)[None] for table in by_axis)
        x = self.patch_embed(patches[None])
        for block in self.blocks:
            x = block(x, (cos, sin))
        return self.ln_q(x).reshape(1, -1, spec.output_size)  # type: ignore[no-any-return]
