"""The numbers that describe a vision-language model, and nothing else.

A `ModelSpec` is what a family's loader finds out about a checkpoint, what the exporters read, what a bundle's manifest
stores and what the session on the device needs. It holds no tensors and imports nothing, so both halves share it.
"""

from edgevlm.spec.decoder import DecoderSpec, DropStage, RopeScaling, TokenDropSpec
from edgevlm.spec.fusion import FusionSpec
from edgevlm.spec.model import ModelSpec
from edgevlm.spec.prompt import PatchesSpec, PreprocessSpec, PromptSpec
from edgevlm.spec.text import TextTowerSpec
from edgevlm.spec.tiles import (
    AnyresTiles,
    AspectTiles,
    FittedTiles,
    FramedLayout,
    ImageLayout,
    RowsLayout,
    SplitTiles,
    StackedTiles,
    TileSpec,
)
from edgevlm.spec.vision import (
    CompressedVitSpec,
    EncoderSpec,
    FastViTHDSpec,
    LdpSpec,
    LinearProjectorSpec,
    MlpProjectorSpec,
    ProjectorSpec,
    QFormerSpec,
    Qwen2VisionSpec,
    ReducerSpec,
    VisionSpec,
    VitSpec,
)

__all__ = [
    "AnyresTiles",
    "AspectTiles",
    "CompressedVitSpec",
    "DecoderSpec",
    "DropStage",
    "EncoderSpec",
    "FastViTHDSpec",
    "FittedTiles",
    "FramedLayout",
    "FusionSpec",
    "ImageLayout",
    "LdpSpec",
    "LinearProjectorSpec",
    "MlpProjectorSpec",
    "ModelSpec",
    "PatchesSpec",
    "PreprocessSpec",
    "ProjectorSpec",
    "PromptSpec",
    "QFormerSpec",
    "Qwen2VisionSpec",
    "ReducerSpec",
    "RopeScaling",
    "RowsLayout",
    "SplitTiles",
    "StackedTiles",
    "TextTowerSpec",
    "TileSpec",
    "TokenDropSpec",
    "VisionSpec",
    "VitSpec",
]
