"""The text graph: `input_ids` int64 `[1, L]` to `text_embeds` float32 `[1, P]`, for models that choose by the question.

In: a text tower in any float dtype. The ids end in the end token, L is free up to the tower's length, and the vector is
as long as it comes. Names are those of transformers' `CLIPTextModelWithProjection` in ONNX.
"""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import torch
from torch.export import Dim

from edgevlm.exporters.onnx import layout
from edgevlm.exporters.onnx.external import ExternalData
from edgevlm.exporters.onnx.vision import trace, write_vision
from edgevlm.models.text_tower import TextTower
from edgevlm.recipe import Precision


def export_text(tower: TextTower, precision: Precision, path: Path, data: ExternalData) -> int:
    """Write the graph to `path` and its big tensors to `data`; returns the bytes of its weights.

    Args:
        tower: left as it is.
        precision: `fp32` or `fp16`; the graph computes in float32.

    Raises:
        ValueError: a weight is not finite or does not fit the precision.
        OSError: a file cannot be written.
    """
    return write_vision(trace_text(tower), precision, path, data)


def trace_text(tower: TextTower) -> ir.Model:
    """The graph in float32."""
    length = Dim("text_length", min=2, max=len(tower.positions))
    ids = torch.zeros(1, min(5, len(tower.positions)), dtype=torch.int64)
    return trace(tower, (ids,), ({1: length},), ["input_ids"], ["text_embeds"], layout.TEXT)
