"""A small `ModelSpec` for tests that need one and no model."""

from dataclasses import replace

from decoders import QWEN2

from edgevlm.spec import FastViTHDSpec, MlpProjectorSpec, ModelSpec, PreprocessSpec, PromptSpec, VisionSpec

TINY = ModelSpec(
    family="fastvlm",
    name="tiny",
    vision=VisionSpec(
        encoder=FastViTHDSpec(depths=(1, 1, 1, 1, 1), dims=(12, 24, 48, 96, 192), squeeze_channels=24),
        projector=MlpProjectorSpec(32),
        image_size=256,
        image_tokens=16,
    ),
    decoder=replace(
        QWEN2,
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        head_dim=8,
        rotary_dim=8,
        max_position_embeddings=128,
    ),
    preprocess=PreprocessSpec(image_size=256),
    prompt=PromptSpec(chat_template="{{ messages[0].content }}", stop_token_ids=(63,)),
    notes=("made for a test",),
)
