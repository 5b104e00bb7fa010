"""One causal decoder for every family: Llama, Qwen2/3, SmolLM, Phi-2 and TinyGPT-V's patched Phi-2.

In: embeddings `[B, S, H]`, position ids `[B, S]`, optionally a key/value cache. Out: logits `[B, S, V]` and the new
cache. What differs between families is a field of `DecoderSpec`, never a subclass. Parameter names follow the
published Llama/Qwen2 layout (`layers.N.self_attn.q_proj.weight` ...).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgevlm.models.token_drop import Passage, Prompt, going_on
from edgevlm.spec import DecoderSpec, RopeScaling

KeyValue = tuple[Tensor, Tensor]


def make_norm(kind: str, size: int, eps: float) -> nn.Module:
    """`rms` (arXiv 1910.07467, float32 inside) or `layer`; `none` is the identity."""
    if kind == "rms":
        return nn.RMSNorm(size, eps=eps)
    if kind == "layer":
        return nn.LayerNorm(size, eps=eps)
    return nn.Identity()


def rotary_tables(positions: Tensor, rotary_dim: int, theta: float, scaling: RopeScaling | None = None) -> KeyValue:
    """Cosine and sine `[..., rotary_dim / 2]` in float32 for integer `positions` (RoPE, arXiv 2104.09864)."""
    angles = positions.float()[..., None] / rotary_periods(rotary_dim, theta, scaling).to(positions.device)
    return angles.cos(), angles.sin()


def rotary_periods(rotary_dim: int, theta: float, scaling: RopeScaling | None = None) -> Tensor:
    """Positions in which each frequency turns by one radian, float32 `[rotary_dim / 2]`."""
    periods: Tensor = theta ** (torch.arange(0, rotary_dim, 2, dtype=torch.float32) / rotary_dim)
    return periods if scaling is None else periods * rotary_factors(periods, scaling)


def rotary_factors(periods: Tensor, scaling: RopeScaling) -> Tensor:
    """What Llama 3.1 multiplies `periods` by: 1 up to `scaling.factor`."""
    waves = scaling.original_max_position_embeddings / (2 * math.pi * periods)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = ((waves - low) / (high - low)).clamp(0, 1)
    return 1 / (kept + (1 - kept) / scaling.factor)


def join_axes(tables: KeyValue, sections: tuple[int, ...]) -> KeyValue:
    """M-RoPE (Qwen2-VL, arXiv 2409.12191): tables of three axes `[3, ..., D / 2]` to one `[..., D / 2]`.

    The first section of the frequencies is taken from the first axis, the next from the next.
    """
    cos, sin = (
        torch.cat([part[axis] for axis, part in enumerate(torch.split(table, list(sections), dim=-1))], dim=-1)
        for table in tables
    )
    return cos, sin


def rotary_for(spec: DecoderSpec, position_ids: Tensor) -> KeyValue:
    """Cosine and sine `[B, S, rotary_dim / 2]` of positions `[B, S]`, or `[3, B, S]` for M-RoPE."""
    tables = rotary_tables(position_ids, spec.rotary_dim, spec.rope_theta, spec.rope_scaling)
    return join_axes(tables, spec.rope_sections) if spec.rope_sections else tables


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Half-split rotation of the leading `2 * cos.shape[-1]` channels of `x` `[B, heads, S, D]`."""
    half = cos.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    cos, sin = cos[:, None].to(x.dtype), sin[:, None].to(x.dtype)
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1)


class Attention(nn.Module):
    """Grouped-query causal self-attention with rotary positions."""

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        self.spec = spec
        self.q_proj = nn.Linear(spec.hidden_size, spec.query_size, bias=spec.qkv_bias)
        self.k_proj = nn.Linear(spec.hidden_size, spec.key_value_size, bias=spec.qkv_bias)
        self.v_proj = nn.Linear(spec.hidden_size, spec.key_value_size, bias=spec.qkv_bias)
        self.o_proj = nn.Linear(spec.query_size, spec.hidden_size, bias=spec.attention_out_bias)
        self.q_norm = make_norm(spec.qk_norm, spec.head_dim, spec.norm_eps)
        self.k_norm = make_norm(spec.qk_norm, spec.head_dim, spec.norm_eps)

    def query(self, x: Tensor, rotary: KeyValue) -> Tensor:
        """Rotated queries `[B, heads, S, D]` of `[B, S, H]`."""
        return rotate(self.q_norm(self._heads(self.q_proj(x))), *rotary)

    def key(self, x: Tensor) -> Tensor:
        """Keys `[B, heads, S, D]` of `[B, S, H]`, not yet rotated."""
        return self.k_norm(self._heads(self.k_proj(x)))  # type: ignore[no-any-return]

    def _heads(self, y: Tensor) -> Tensor:
        return y.view(*y.shape[:2], -1, self.spec.head_dim).transpose(1, 2)

    def forward(
        self, x: Tensor, rotary: KeyValue, past: KeyValue | None, mask: Tensor | None
    ) -> tuple[Tensor, KeyValue]:
        """`[B, S, H]` to `[B, S, H]` and the keys and values `[B, heads, T, D]` including the past."""
        spec, (batch, length) = self.spec, x.shape[:2]
        query, key = self.query(x, rotary), rotate(self.key(x), *rotary)
        value = self._heads(self.v_proj(x))
        if past is not None:
            key, value = torch.cat((past[0], key), dim=2), torch.cat((past[1], value), dim=2)
        mixed = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            is_causal=mask is None and length > 1,
            enable_gqa=spec.num_attention_heads != spec.num_key_value_heads,
        )
        mixed = mixed.transpose(1, 2).reshape(batch, length, spec.query_size)
        return self.o_proj(mixed), (key, value)


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)), arXiv 2002.05202."""

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(spec.hidden_size, spec.intermediate_size, bias=spec.mlp_bias)
        self.up_proj = nn.Linear(spec.hidden_size, spec.intermediate_size, bias=spec.mlp_bias)
        self.down_proj = nn.Linear(spec.intermediate_size, spec.hidden_size, bias=spec.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        """Keeps the shape `[B, S, H]`."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))  # type: ignore[no-any-return]


class GeluMLP(nn.Module):
    """fc2(gelu_new(fc1(x))), the tanh form of GELU that Phi uses."""

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        self.fc1 = nn.Linear(spec.hidden_size, spec.intermediate_size, bias=spec.mlp_bias)
        self.fc2 = nn.Linear(spec.intermediate_size, spec.hidden_size, bias=spec.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        """Keeps the shape `[B, S, H]`."""
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))  # type: ignore[no-any-return]


class DecoderLayer(nn.Module):
    """Attention and MLP around a residual stream, one after the other or side by side on one norm (Phi)."""

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        self.parallel = spec.residual == "parallel"
        self.input_layernorm = make_norm(spec.norm, spec.hidden_size, spec.norm_eps)
        self.self_attn = Attention(spec)
        # TinyGPT-V normalises the attention branch; its RMSNorm has its own eps (models specification, 2.2).
        self.attention_branch_norm = make_norm(spec.post_attention_norm, spec.hidden_size, 1e-6)
        if not self.parallel:
            self.post_attention_layernorm = make_norm(spec.norm, spec.hidden_size, spec.norm_eps)
        self.mlp = SwiGLU(spec) if spec.mlp == "swiglu" else GeluMLP(spec)

    def forward(
        self, x: Tensor, rotary: KeyValue, past: KeyValue | None, mask: Tensor | None
    ) -> tuple[Tensor, KeyValue]:
        """`[B, S, H]` to `[B, S, H]` and this layer's cache."""
        normed = self.input_layernorm(x)
        attention, present = self.self_attn(normed, rotary, past, mask)
        attention = self.attention_branch_norm(attention)
        if self.parallel:
            return x + attention + self.mlp(normed), present
        x = x + attention
        return x + self.mlp(self.post_attention_layernorm(x)), present


class Decoder(nn.Module):
    """Embeddings to logits. With tied embeddings the head is the embedding matrix and `lm_head` does not exist."""

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        self.spec = spec
        self.embed_tokens = nn.Embedding(spec.vocab_size, spec.hidden_size)
        self.layers = nn.ModuleList([DecoderLayer(spec) for _ in range(spec.num_hidden_layers)])
        self.norm = make_norm(spec.norm, spec.hidden_size, spec.norm_eps)
        #: Which layer of the checkpoint's decoder each layer was.
        self.origins = tuple(range(spec.num_hidden_layers))
        if not spec.tied_embeddings:
            self.lm_head = nn.Linear(spec.hidden_size, spec.vocab_size, bias=spec.head_bias)

    def head(self, x: Tensor) -> Tensor:
        """Normed hidden states `[..., H]` to logits `[..., V]`."""
        if self.spec.tied_embeddings:
            return F.linear(x, self.embed_tokens.weight)
        return self.lm_head(x)  # type: ignore[no-any-return]

    def forward(
        self,
        inputs_embeds: Tensor,
        position_ids: Tensor,
        past: list[KeyValue] | None = None,
        mask: Tensor | None = None,
        *,
        last_only: bool = False,
        image_starts: Sequence[int] = (),
    ) -> tuple[Tensor, list[KeyValue]]:
        """Run the decoder.

        Args:
            inputs_embeds: `[B, S, H]`.
            position_ids: int `[B, S]`, absolute; `[3, B, S]` for M-RoPE.
            past: per layer keys and values `[B, heads, P, D]`.
            mask: bool `[B or 1, 1, S, P+S]`, true where attention is allowed; causal when None.
            last_only: compute the logits of the last position alone.
            image_starts: where images begin in `inputs_embeds`, for decoders that drop some of their tokens; these take
                a batch of one and no mask.

        Returns:
            logits `[B, S or 1, V]`, and the cache with P+S positions; behind a stage of `DecoderSpec.token_drop`, S and
            P count the tokens that go on.
        """
        drop, x = self.spec.token_drop, inputs_embeds
        assert drop is None or not image_starts or (len(x) == 1 and mask is None)
        prompt = Prompt(tuple(image_starts), x.shape[1] - 1, x.shape[1])
        rotary, allowed = rotary_for(self.spec, position_ids), mask if mask is not None else _causal(x, past, 0)
        presents: list[KeyValue] = []
        for index, layer in enumerate(self.layers):
            before = x
            x, present = layer(x, rotary, past[index] if past else None, allowed)
            presents.append(present)
            stage = drop.stage_behind(index) if drop else None
            if drop and stage is not None:
                assert isinstance(layer, DecoderLayer)
                passage = Passage(before, x, rotary, present[0])
                x, prompt = going_on(drop, stage, layer, self.norm, passage, prompt)
                begin = past[index + 1][0].shape[2] if past else 0
                rotary = rotary_for(self.spec, torch.arange(begin, begin + prompt.length)[None])
                allowed = _causal(x, past, index + 1)
        if last_only:
            x = x[:, -1:]
        return self.head(self.norm(x)), presents


def _causal(x: Tensor, past: list[KeyValue] | None, layer: int) -> Tensor | None:
    """The mask `[1, 1, S, P+S]` of states `[B, S, H]` in front of a layer, where there is a past and it is needed."""
    length = x.shape[1]
    if past is None or length == 1:
        return None
    before = past[layer][0].shape[2]
    return torch.ones(length, before + length, dtype=torch.bool, device=x.device).tril(before)[None, None]
