"""Sizes of the decoders of synthetic checkpoints: what the published ones leave alike stands here once."""

from edgevlm.spec import DecoderSpec


def sized(
    architecture: str,
    rows: int,
    hidden: int,
    intermediate: int,
    layers: int,
    heads: int,
    kv_heads: int,
    *,
    theta: float = 1e6,
    tied: bool = True,
    context: int = 32768,
) -> DecoderSpec:
    """A Llama or a Qwen2, whose heads divide the hidden size; the defaults are small Qwen2's."""
    return DecoderSpec(
        architecture=architecture,
        vocab_size=rows,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=hidden // heads,
        rotary_dim=hidden // heads,
        rope_theta=theta,
        norm_eps=1e-5 if architecture == "llama" else 1e-6,
        max_position_embeddings=context,
        qkv_bias=architecture != "llama",
        tied_embeddings=tied,
    )
