"""Write the ONNX files of a model: its graphs, their data, and the configuration around them.

In: a `VlmModel` and two precisions. Out: `onnx/vision_encoder*.onnx`, `onnx/embed_tokens*.onnx`,
`onnx/decoder_model_merged*.onnx`, for models with a fusion `onnx/fusion*.onnx`, and for those whose image tokens depend
on the question `onnx/text_model*.onnx`, each with an `.onnx_data` file, and JSON files. The folder loads in ONNX
Runtime and transformers.js. The same model and precisions give the same bytes.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor, nn

from edgevlm.errors import CheckpointError
from edgevlm.exporters.base import Artifact, Progress, Role
from edgevlm.exporters.onnx import layout
from edgevlm.exporters.onnx.configs import write_configs, write_tokenizer
from edgevlm.exporters.onnx.decoder import DecoderBuilder
from edgevlm.exporters.onnx.dialect_ort import OrtDialect
from edgevlm.exporters.onnx.external import ExternalData
from edgevlm.exporters.onnx.fusion import export_fusion
from edgevlm.exporters.onnx.graph import Graph
from edgevlm.exporters.onnx.static_int8 import trace_static
from edgevlm.exporters.onnx.table import StoredTable, build_embedding, write_table
from edgevlm.exporters.onnx.text import export_text
from edgevlm.exporters.onnx.vision import export_vision, write_vision
from edgevlm.models.footprint import release
from edgevlm.models.fusion import Fusion
from edgevlm.models.text_side import TextSide
from edgevlm.models.vlm import VlmModel
from edgevlm.quant.schemes import Scheme, scheme_for, store
from edgevlm.quant.tensor import QuantizedTensor
from edgevlm.quant.vision import StaticPlan
from edgevlm.recipe import Precision, VisionPrecision
from edgevlm.spec import ModelSpec


def supports(spec: ModelSpec, precision: Precision, vision_precision: VisionPrecision) -> str | None:
    """Why this model cannot be exported like this; None when it can."""
    del precision, vision_precision  # every one exists
    if spec.decoder.rotary_dim % 16:
        return f"GroupQueryAttention rotates channels in groups of 16, not {spec.decoder.rotary_dim}"
    return None


def export(
    model: VlmModel,
    out: Path,
    *,
    precision: Precision,
    vision_precision: VisionPrecision,
    static: StaticPlan | None = None,
    decoder: Sequence[Artifact] = (),
    progress: Progress,
) -> list[Artifact]:
    """Write the files into `out`, an existing folder.

    Args:
        model: its weights may be memory-mapped; they are converted one at a time, and let go of layer by layer.
        precision: of the decoder, its embedding and the fusion.
        vision_precision: storage of the vision tower; it computes in float32, but for w8a8.
        static: how w8a8 computes.
        decoder: embedding and decoder, where their files are in `out` already; they are not written again.
        progress: called with weights done, weights in all, and what is being written.

    Raises:
        CheckpointError: a weight is not finite or does not fit the precision, or the tokenizer cannot be read.
        OSError: a file cannot be written.
    """
    folder = out / layout.FOLDER
    folder.mkdir(exist_ok=True)
    steps = _Steps(
        [model.vision, *(side.text for side in _texts(model)), *_fusions(model), *([] if decoder else [model.decoder])],
        progress,
    )
    with _weight_errors(model):
        vision = _export_vision(model, folder, vision_precision, static, steps)
        vision += _export_text(model, folder, vision_precision, steps)
        fusion = _export_fusion(model, folder, precision, steps)
        decoder = decoder or _export_embedding_and_decoder(model, folder, precision, steps)
    names = write_configs(model.spec, model.tokenizer_files, out, precision, vision_precision)
    configs = [Artifact(name, "tokenizer" if name.startswith("tokenizer") else "config", "json") for name in names]
    return [*vision, *fusion, *decoder, *configs]


def export_vision_part(
    model: VlmModel,
    out: Path,
    *,
    precision: Precision,
    vision_precision: VisionPrecision,
    static: StaticPlan | None = None,
    progress: Progress,
) -> list[Artifact]:
    """Write the vision, text and fusion graphs and the tokenizer alone, for bundles whose decoder has another format.

    `precision` is the fusion's, the others are as in `export`.

    Raises:
        CheckpointError: a weight is not finite or does not fit the precision, or the tokenizer cannot be read.
        OSError: a file cannot be written.
    """
    folder = out / layout.FOLDER
    folder.mkdir()
    steps = _Steps([model.vision, *(side.text for side in _texts(model)), *_fusions(model)], progress)
    with _weight_errors(model):
        vision = _export_vision(model, folder, vision_precision, static, steps)
        vision += _export_text(model, folder, vision_precision, steps)
        fusion = _export_fusion(model, folder, precision, steps)
    names = write_tokenizer(model.spec, model.tokenizer_files, out)
    return [*vision, *fusion, *(Artifact(name, "tokenizer", "json") for name in names)]


@contextlib.contextmanager
def _weight_errors(model: VlmModel) -> Iterator[None]:
    """Quantizers raise ValueError for weights that they cannot represent."""
    try:
        yield
    except ValueError as error:
        raise CheckpointError(str(error), model.spec.name, "download the checkpoint again, or choose fp32") from error


class _Steps:
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


def weights_of(module: nn.Module) -> int:
    """Weights of a module."""
    return sum(parameter.numel() for parameter in module.parameters())


def _export_vision(
    model: VlmModel, folder: Path, precision: VisionPrecision, static: StaticPlan | None, steps: _Steps
) -> list[Artifact]:
    steps.before("vision tower")
    path = folder / layout.graph_file(layout.VISION, precision)
    with ExternalData(folder / layout.data_file(layout.VISION, precision)) as data:
        size = model.spec.vision.image_size
        if precision == "w8a8":
            assert static is not None
            # What stays in float is stored as it is by default.
            weight_bytes = write_vision(trace_static(model.vision, size, static), "fp16", path, data)
        else:
            weight_bytes = export_vision(model.vision, size, precision, path, data)
    weights = weights_of(model.vision)
    release(model.vision)
    steps.after("vision tower", weights)
    return _artifacts("vision", layout.VISION, precision, weights, weight_bytes)


def _texts(model: VlmModel) -> list[TextSide]:
    """The text side, where the vision graph needs what it makes."""
    return [] if model.text_side is None or model.spec.vision.text is None else [model.text_side]


def _export_text(model: VlmModel, folder: Path, vision_precision: VisionPrecision, steps: _Steps) -> list[Artifact]:
    """The text graph, at half precision for narrower vision towers, and the tower's tokenizer above `folder`."""
    if not _texts(model):
        return []
    (side,) = _texts(model)
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
    return [*_artifacts("text", layout.TEXT, precision, weights, weight_bytes), tokenizer]


def _fusions(model: VlmModel) -> list[Fusion]:
    return [] if model.fusion is None else [model.fusion]


def _export_fusion(model: VlmModel, folder: Path, precision: Precision, steps: _Steps) -> list[Artifact]:
    if model.fusion is None:
        return []
    steps.before("fusion")
    path = folder / layout.graph_file(layout.FUSION, precision)
    with ExternalData(folder / layout.data_file(layout.FUSION, precision)) as data:
        weight_bytes = export_fusion(model.fusion, model.spec.vision.image_tokens, precision, path, data)
    weights = weights_of(model.fusion)
    release(model.fusion)
    steps.after("fusion", weights)
    return _artifacts("fusion", layout.FUSION, precision, weights, weight_bytes)


def _export_embedding_and_decoder(model: VlmModel, folder: Path, precision: Precision, steps: _Steps) -> list[Artifact]:
    table, embedding = _export_embedding(model, folder, precision, steps)
    return [*embedding, *_export_decoder(model, folder, precision, table, steps)]


def _export_embedding(
    model: VlmModel, folder: Path, precision: Precision, steps: _Steps
) -> tuple[StoredTable, list[Artifact]]:
    weight = model.decoder.embed_tokens.weight
    steps.before("token embedding")
    with ExternalData(folder / layout.data_file(layout.EMBEDDING, precision)) as data:
        asked = model.quantized.get("embed_tokens.weight")
        matrix = asked if isinstance(asked, QuantizedTensor) else store(weight, asked or _embedding(weight, precision))
        table = write_table(matrix, data)
        graph = Graph(layout.EMBEDDING, data)
        build_embedding(graph, table, model.spec.prompt.image_token_id)
    graph.save(folder / layout.graph_file(layout.EMBEDDING, precision))
    release(model.decoder.embed_tokens)
    steps.after("token embedding", weight.numel())
    return table, _artifacts("embed", layout.EMBEDDING, precision, weight.numel(), table.weight_bytes)


def _embedding(weight: Tensor, precision: Precision) -> Scheme:
    return scheme_for("embed_tokens.weight", "embedding", weight.shape[1], precision)


def _export_decoder(
    model: VlmModel, folder: Path, precision: Precision, table: StoredTable, steps: _Steps
) -> list[Artifact]:
    decoder = model.decoder
    with ExternalData(folder / layout.data_file(layout.DECODER, precision)) as data:
        graph = Graph(layout.DECODER, data)
        builder = DecoderBuilder(
            decoder, OrtDialect(graph, decoder.spec, cache=model.cache_scales), precision, model.quantized
        )
        x, normed = builder.begin()
        for index, layer in enumerate(decoder.layers):
            x, normed = builder.layer(index, x, normed)
            release(layer)
            steps.after(f"decoder layer {index + 1} of {len(decoder.layers)}", weights_of(layer))
        builder.head(normed, table)
    graph.save(folder / layout.graph_file(layout.DECODER, precision))
    release(decoder)
    steps.after("decoder head", steps.total - steps.done)
    weights = weights_of(decoder) - decoder.embed_tokens.weight.numel()
    return _artifacts("decoder", layout.DECODER, precision, weights, graph.weight_bytes)


def _artifacts(
    role: Role, component: str, precision: VisionPrecision, weights: int, weight_bytes: int
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
