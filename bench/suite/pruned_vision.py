"""Vision sides of full size for the rows about pruning visual tokens: their numbers, their reducers, and sessions."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime as ort
import torch
from torch import Tensor, nn

from edgevlm.exporters.onnx.vision import OPSET
from edgevlm.exporters.onnx.vision_ops import TRANSLATIONS
from edgevlm.models.projector import build_projector
from edgevlm.models.vlm import VisionModel, build_encoder
from edgevlm.pruning.tokens import REDUCERS
from edgevlm.pruning.tokens.reducer import Reducer
from edgevlm.spec import FastViTHDSpec, MlpProjectorSpec, VisionSpec, VitSpec

#: Tokens that are kept, and the share of the vision side's time that choosing them may take.
KEEP, MOST = 64, 0.05
CLIP_L = VitSpec(1024, 4096, 23, 16, 14, 24, 1e-5, activation="quick_gelu", class_token=True, pre_norm=True)


@dataclass(frozen=True)
class Size:
    """A vision side: its numbers, channels of an embedding, and the queries of the layers that reducers look at."""

    vision: VisionSpec
    hidden: int
    heads: int
    head_size: int
    class_tokens: int


SIZES = {
    "fastvlm-0.5b": Size(VisionSpec(FastViTHDSpec(), MlpProjectorSpec(896), 1024, 256), 896, 48, 32, 0),
    "llava-1.5-7b": Size(VisionSpec(CLIP_L, MlpProjectorSpec(4096), 336, 576), 4096, 16, 64, 1),
}
#: Methods that need nothing but an image. `resolution` is another encoder's input, which the rows about gain measure.
IN_GRAPH = [
    name for name, cls in REDUCERS.items() if issubclass(cls, Reducer) and not cls.needs_text and name != "resolution"
]
CASES = [(size, name) for size in SIZES for name in IN_GRAPH if SIZES[size].class_tokens or not REDUCERS[name].uses_cls]
IDS = [f"{size}-{name}" for size, name in CASES]


def reducer(size: Size, name: str) -> Reducer[Any]:
    """A method with its defaults."""
    method = REDUCERS[name]
    assert issubclass(method, Reducer)
    made: Reducer[Any] = method(size.vision, KEEP, method.Options())
    return made.eval()


def vision_side(size: Size) -> VisionModel:
    """Random weights, the same each time, and no reducer."""
    torch.manual_seed(0)
    return VisionModel(build_encoder(size.vision.encoder), build_projector(size.vision, size.hidden)).eval()


def session(path: Path, threads: int) -> ort.InferenceSession:
    """On the CPU."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def standalone(
    module: nn.Module, inputs: tuple[Tensor, ...], path: Path
) -> tuple[ort.InferenceSession, dict[str, Any]]:
    """A module as a graph of its own on one core, and what to feed it."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module, inputs, dynamo=True, opset_version=OPSET, custom_translation_table=TRANSLATIONS, verbose=False
        )
    assert program is not None
    program.save(path)
    graph = session(path, 1)
    names = [value.name for value in program.model.graph.inputs]
    given = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
    return graph, {value.name: given[value.name] for value in graph.get_inputs()}
