"""Numbers of tiny decoders, one of each kind; tests vary them with `replace`."""

from dataclasses import replace

from edgevlm.spec import DecoderSpec

QWEN2 = DecoderSpec(
    architecture="qwen2",
    vocab_size=100,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    rotary_dim=16,
    rope_theta=1e4,
    norm_eps=1e-6,
    max_position_embeddings=64,
    qkv_bias=True,
)
LLAMA = replace(QWEN2, architecture="llama", qkv_bias=False, tied_embeddings=False, intermediate_size=112)
PHI2 = replace(
    QWEN2,
    architecture="phi2",
    num_attention_heads=2,
    head_dim=32,
    norm="layer",
    residual="parallel",
    mlp="gelu_new",
    attention_out_bias=True,
    mlp_bias=True,
    tied_embeddings=False,
    head_bias=True,
)
TINYGPTV = replace(PHI2, qk_norm="layer", post_attention_norm="rms")
DECODERS = {"qwen2": QWEN2, "llama": LLAMA, "phi2": PHI2, "tinygptv": TINYGPTV}
