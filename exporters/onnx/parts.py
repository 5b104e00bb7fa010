"""What exporters that write ONNX files share: progress in weights, errors of weights, and a graph's artefacts."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from torch import nn

from edgevlm.errors import CheckpointError
from edgevlm.exporters.base import Artifact, Progress, Role
from edgevlm.exporters.onnx import layout
from edgevlm.exporters.onnx.external import ExternalData
from edgevlm.exporters.onnx.text import export_text
from edgevlm.models.decoder import Decoder
from edgevlm.models.footprint import release
from edgevlm.models.text_side import TextSide
from edgevlm.models.vlm import VlmModel
from edgevlm.recipe import Precision, StoredPrecision, VisionPrecision


@contextlib.contextmanager
def weight_errors(model: VlmModel) -> Iterator[None]:
    """Quantizers raise ValueError for weights that they cannot represent."""
    try:
        yield
    except ValueError as error:
        raise CheckpointError(str(error), model.spec.name, "download the checkpoint again, or choose fp32") from error


class Steps:
    """Progress in weights written, over all the modules to write."""

    def __init__(self, modules: list[nn.Module], progress: Progress) -> None:
        self.done = 0
        self.total = sum(weights_of(module) for module in modules)
        self._progress = progress

    def before(self, what: str) -> None:
        """Say what is written next."""
        self._progress(self.done, self.total, what)

    def after(self, what: str, weights: int) -> None:
        """Say that it was written."""
        self.done += weights
        self._progress(self.done, self.total, what)

    def layers_of(self, decoder: Decoder) -> Callable[[int], None]:
        """What to call behind each layer with its index: its memory is given back, too."""

        def written(index: int) -> None:
            layer = decoder.layers[index]
            release(layer)
            self.after(f"decoder layer {index + 1} of {len(decoder.layers)}", weights_of(layer))

        return written


def weights_of(module: nn.Module) -> int:
    """Weights of a module."""
    return sum(parameter.numel() for parameter in module.parameters())


def texts(model: VlmModel) -> list[TextSide]:
    """The text side, where the vision graph needs what it makes."""
    return [] if model.text_side is None or model.spec.vision.text is None else [model.text_side]


def export_texts(model: VlmModel, folder: Path, vision_precision: VisionPrecision, steps: Steps) -> list[Artifact]:
    """The text graph, at half precision for narrower vision towers, and the tower's tokenizer above `folder`."""
    if not texts(model):
        return []
    (side,) = texts(model)
    precision: Precision = "fp32" if vision_precision == "fp32" else "fp16"
    steps.before("text tower")
    path = folder / layout.graph_file(layout.TEXT, precision)
    with ExternalData(folder / layout.data_file(layout.TEXT, precision)) as data:
        weight_bytes = export_text(side.text, precision, path, data)
    weights = weights_of(side.text)
    release(side.text)
    shutil.copyfile(side.tokenizer, folder.parent / layout.TEXT_TOKENIZER)
    steps.after("text tower", weights)
    tokenizer = Artifact(layout.TEXT_TOKENIZER, "text_tokenizer", "json")
    return [*artifacts("text", layout.TEXT, precision, weights, weight_bytes), tokenizer]


def artifacts(
    role: Role, component: str, precision: StoredPrecision, weights: int, weight_bytes: int
) -> list[Artifact]:
    """A graph and its data file; the graph's few inline weights are counted with the data."""
    prefix = f"{layout.FOLDER}/"
    return [
        Artifact(prefix + layout.graph_file(component, precision), role, "onnx", precision),
        Artifact(
            prefix + layout.data_file(component, precision),
            role,
            "onnx-data",
            precision,
            bits_per_weight=8 * weight_bytes / weights,
            parameters=weights,
        ),
    ]
