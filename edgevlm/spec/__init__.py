"""The numbers that describe a vision-language model, and nothing else.

A `ModelSpec` is what a family's loader finds out about a checkpoint, what the exporters read, what a bundle's manifest
stores and what the session on the device needs. It holds no tensors and imports nothing, so both halves share it.
"""

from edgevlm.spec.decoder import DecoderSpec
from edgevlm.spec.model import ModelSpec
from edgevlm.spec.prompt import PreprocessSpec, PromptSpec
from edgevlm.spec.tiles import AnyresTiles, AspectTiles, FramedLayout, ImageLayout, RowsLayout, SplitTiles, TileSpec
from edgevlm.spec.vision import (
    EncoderSpec,
    FastViTHDSpec,
    LinearProjectorSpec,
    MlpProjectorSpec,
    ProjectorSpec,
    QFormerSpec,
    VisionSpec,
    VitSpec,
)

__all__ = [
    "AnyresTiles",
    "AspectTiles",
    "DecoderSpec",
    "EncoderSpec",
    "FastViTHDSpec",
    "FramedLayout",
    "ImageLayout",
    "LinearProjectorSpec",
    "MlpProjectorSpec",
    "ModelSpec",
    "PreprocessSpec",
    "ProjectorSpec",
    "PromptSpec",
    "QFormerSpec",
    "RowsLayout",
    "SplitTiles",
    "TileSpec",
    "VisionSpec",
    "VitSpec",
]
