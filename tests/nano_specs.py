"""Sizes of nano models small enough to train for a few steps in a test."""

from dataclasses import replace

from edgevlm.spec import CompressedVitSpec, DecoderSpec, FusionSpec, QFormerSpec, VitSpec
from edgevlm.zoo.clip import TextTowerSpec
from edgevlm.zoo.nano import NanoSpec, PromptPieces

CLIP = VitSpec(
    hidden_size=64,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    patch_size=16,
    grid=4,
    norm_eps=1e-5,
    activation="quick_gelu",
    class_token=True,
    patch_bias=False,
    pre_norm=True,
)
LLAVA = NanoSpec(
    encoder=CLIP,
    decoder=DecoderSpec(
        architecture="llama",
        vocab_size=1024,
        hidden_size=128,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=64,
        rotary_dim=64,
        rope_theta=1e6,
        norm_eps=1e-6,
        max_position_embeddings=2048,
    ),
    image_size=64,
    text=TextTowerSpec(
        vocab_size=1024,
        hidden_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
        projection_size=32,
    ),
    mean=(0.5, 0.4, 0.3),
    std=(0.25, 0.3, 0.35),
)
TINYGPTV = NanoSpec(
    encoder=replace(CLIP, norm_eps=1e-6, activation="gelu", keep_class_token=True, patch_bias=True, pre_norm=False),
    decoder=DecoderSpec(
        architecture="phi2",
        vocab_size=1024,
        hidden_size=128,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=64,
        rotary_dim=32,
        rope_theta=1e4,
        norm_eps=1e-5,
        max_position_embeddings=2048,
        norm="layer",
        residual="parallel",
        mlp="gelu_new",
        qkv_bias=True,
        attention_out_bias=True,
        mlp_bias=True,
        qk_norm="layer",
        post_attention_norm="rms",
        tied_embeddings=False,
        head_bias=True,
    ),
    image_size=64,
    queries=QFormerSpec(
        hidden_size=64, intermediate_size=256, num_hidden_layers=2, num_attention_heads=2, num_queries=8
    ),
    prompt=PromptPieces("[INST] <Img>", "</Img> [vqa] {question} [/INST]", "<|endoftext|>"),
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
)
LLAVA_MINI = NanoSpec(
    encoder=CompressedVitSpec(CLIP, query_grid=1, query_heads=8),
    decoder=replace(LLAVA.decoder, num_hidden_layers=2),
    image_size=LLAVA.image_size,
    text=LLAVA.text,
    fusion=FusionSpec(num_hidden_layers=3, image_tokens=1),
    mean=LLAVA.mean,
    std=LLAVA.std,
)
