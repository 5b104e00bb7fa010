"""Decoders that drop image tokens, once more: transformers' layers, whole sequences, and sets instead of masks.

It shares no code with the product and keeps no cache: prompts and answers go through each layer as one sequence.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PhiConfig, PreTrainedModel, Qwen3Config

from edgevlm.models.decoder import Decoder
from edgevlm.spec import DecoderSpec, TokenDropSpec

COMMON: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
QWEN3 = Qwen3Config(**COMMON, head_dim=16, rms_norm_eps=1e-6, rope_theta=1e4, tie_word_embeddings=True)
PHI = PhiConfig(
    **{**COMMON, "num_key_value_heads": 4}, layer_norm_eps=1e-6, partial_rotary_factor=0.5, tie_word_embeddings=False
)
FIELDS: dict[str, Any] = {**COMMON, "head_dim": 16, "rotary_dim": 16, "rope_theta": 1e4, "norm_eps": 1e-6}
OURS = {
    "qwen3": DecoderSpec(**FIELDS, architecture="qwen3", qk_norm="rms"),
    "phi2": DecoderSpec(
        **{**FIELDS, "num_key_value_heads": 4, "rotary_dim": 8},
        architecture="phi2",
        norm="layer",
        residual="parallel",
        mlp="gelu_new",
        qkv_bias=True,
        attention_out_bias=True,
        mlp_bias=True,
        tied_embeddings=False,
        head_bias=True,
    ),
}


@dataclass(frozen=True)
class Image:
    """Places of an image's tokens, and of the last token of the prompt that it came with."""

    tokens: tuple[int, ...]
    last: int


def pair(name: str, drop: TokenDropSpec) -> tuple[PreTrainedModel, Decoder]:
    """The same random weights in transformers and, with `drop`, in ours."""
    torch.manual_seed(1)
    config = QWEN3 if name == "qwen3" else PHI
    reference = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval().requires_grad_(False)
    for parameter in reference.parameters():
        torch.nn.init.normal_(parameter, std=0.25)
    decoder = Decoder(replace(OURS[name], token_drop=drop)).eval().requires_grad_(False)
    state = {}
    for key, value in reference.state_dict().items():
        renamed = key.removeprefix("model.").replace("self_attn.dense", "self_attn.o_proj")
        state[renamed.replace("final_layernorm", "norm")] = value
    if decoder.spec.tied_embeddings:
        del state["lm_head.weight"]
    decoder.load_state_dict(state)
    return reference, decoder


@torch.no_grad()
def answer(reference: Any, drop: TokenDropSpec, x: Tensor, images: list[Image]) -> tuple[Tensor, list[list[int]]]:
    """Logits `[kept, V]` of a sequence `[S, H]`, and the places (of the sequence) that each stage let go on."""
    model, places, kept = reference.model, list(range(len(x))), []
    norm = getattr(model, "norm", None) or model.final_layernorm
    for index, layer in enumerate(model.layers):
        found: dict[str, Tensor] = {}
        attention = layer.self_attn
        hook = attention.register_forward_hook(lambda _m, _i, out, found=found: found.update(weights=out[1][0]))
        positions = torch.arange(len(x))[None]
        future = torch.full((len(x), len(x)), float("-inf")).triu(1)[None, None]
        rotary = model.rotary_emb(x[None], positions)
        before, output = x, layer(x[None], attention_mask=future, position_ids=positions, position_embeddings=rotary)
        x = output[0] if isinstance(output, Tensor) else output[0][0]
        hook.remove()
        stage = next((s for s in drop.stages if s.after_layers == index + 1), None)
        if stage is None:
            continue
        gone: set[int] = set()
        every = {token for image in images for token in image.tokens}
        for image in images:
            tokens = [token for token in image.tokens if token in places]
            at = places.index
            if drop.score == "attention":
                row = found["weights"][:, at(image.last)].mean(0)
                chosen = sorted(tokens, key=lambda token: -float(row[at(token)]))[: stage.keep]
            else:
                key = attention.k_proj(layer.input_layernorm(before)).view(len(before), -1, 16)
                key = attention.k_norm(key) if hasattr(attention, "k_norm") else key
                size = {place: float(key[at(place)].abs().sum()) for place in places}
                text = [p for p in places if image.tokens[-1] < p <= image.last and p not in every]
                own = sorted(tokens, key=lambda p: -size[p])[: drop.image_pivots]
                other = sorted(text, key=lambda p: -size[p]) + tokens
                pivots = own + other[: drop.text_pivots]
                chosen = list(own)
                states = norm(x)
                wanted = stage.keep - len(own)
                for number, pivot in enumerate(pivots):
                    share = wanted // len(pivots) + (1 if number < wanted % len(pivots) else 0)
                    free = [token for token in tokens if token not in chosen]
                    like = {
                        token: float(torch.cosine_similarity(states[at(pivot)], states[at(token)], dim=0))
                        for token in free
                    }
                    chosen += sorted(free, key=lambda token: like[token])[:share]
            gone |= set(tokens) - set(chosen)
        x = torch.stack([row for place, row in zip(places, x, strict=True) if place not in gone])
        places = [place for place in places if place not in gone]
        kept.append(list(places))
    return reference.lm_head(norm(x)), kept
