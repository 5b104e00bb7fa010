"""Write the ONNX files of a model: its graphs, their data, and the configuration around them.

In: a `VlmModel` and two precisions. Out: `onnx/vision_encoder*.onnx`, `onnx/embed_tokens*.onnx`,
`onnx/decoder_model_merged*.onnx`, for models with a fusion `onnx/fusion*.onnx`, and for those whose image tokens depend
on the question `onnx/text_model*.onnx`, each with an `.onnx_data` file, and JSON files. The folder loads in ONNX
Runtime and transformers.js. The same model and precisions give the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from edgevlm.exporters.base import Artifact, Progress
from edgevlm.exporters.onnx import layout
from edgevlm.exporters.onnx.configs import write_configs, write_tokenizer
from edgevlm.exporters.onnx.decoder import DecoderBuilder
from edgevlm.exporters.onnx.dialect_ort import OrtDialect
from edgevlm.exporters.onnx.external import ExternalData
from edgevlm.exporters.onnx.fusion import export_fusion
from edgevlm.exporters.onnx.graph import Graph
from edgevlm.exporters.onnx.parts import Steps, artifacts, export_texts, texts, weight_errors, weights_of
from edgevlm.exporters.onnx.static_int8 import trace_static
from edgevlm.exporters.onnx.table import StoredTable, build_embedding, write_table
from edgevlm.exporters.onnx.vision import export_vision, write_vision
from edgevlm.models.footprint import release
from edgevlm.models.fusion import Fusion
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
    steps = Steps(
        [model.vision, *(side.text for side in texts(model)), *_fusions(model), *([] if decoder else [model.decoder])],
        progress,
    )
    with weight_errors(model):
        vision = _export_vision(model, folder, vision_precision, static, steps)
        vision += export_texts(model, folder, vision_precision, steps)
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
    steps = Steps([model.vision, *(side.text for side in texts(model)), *_fusions(model)], progress)
    with weight_errors(model):
        vision = _export_vision(model, folder, vision_precision, static, steps)
        vision += export_texts(model, folder, vision_precision, steps)
        fusion = _export_fusion(model, folder, precision, steps)
    names = write_tokenizer(model.spec, model.tokenizer_files, out)
    return [*vision, *fusion, *(Artifact(name, "tokenizer", "json") for name in names)]


def _export_vision(
    model: VlmModel, folder: Path, precision: VisionPrecision, static: StaticPlan | None, steps: Steps
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
    return artifacts("vision", layout.VISION, precision, weights, weight_bytes)


def _fusions(model: VlmModel) -> list[Fusion]:
    return [] if model.fusion is None else [model.fusion]


def _export_fusion(model: VlmModel, folder: Path, precision: Precision, steps: Steps) -> list[Artifact]:
    if model.fusion is None:
        return []
    steps.before("fusion")
    path = folder / layout.graph_file(layout.FUSION, precision)
    with ExternalData(folder / layout.data_file(layout.FUSION, precision)) as data:
        weight_bytes = export_fusion(model.fusion, model.spec.vision.image_tokens, precision, path, data)
    weights = weights_of(model.fusion)
    release(model.fusion)
    steps.after("fusion", weights)
    return artifacts("fusion", layout.FUSION, precision, weights, weight_bytes)


def _export_embedding_and_decoder(model: VlmModel, folder: Path, precision: Precision, steps: Steps) -> list[Artifact]:
    table, embedding = _export_embedding(model, folder, precision, steps)
    return [*embedding, *_export_decoder(model, folder, precision, table, steps)]


def _export_embedding(
    model: VlmModel, folder: Path, precision: Precision, steps: Steps
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
    return table, artifacts("embed", layout.EMBEDDING, precision, weight.numel(), table.weight_bytes)


def _embedding(weight: Tensor, precision: Precision) -> Scheme:
    return scheme_for("embed_tokens.weight", "embedding", weight.shape[1], precision)


def _export_decoder(
    model: VlmModel, folder: Path, precision: Precision, table: StoredTable, steps: Steps
) -> list[Artifact]:
    decoder = model.decoder
    with ExternalData(folder / layout.data_file(layout.DECODER, precision)) as data:
        graph = Graph(layout.DECODER, data)
        builder = DecoderBuilder(
            decoder, OrtDialect(graph, decoder.spec, cache=model.cache_scales), precision, model.quantized
        )
        builder.build(table, steps.layers_of(decoder))
    graph.save(folder / layout.graph_file(layout.DECODER, precision))
    release(decoder)
    steps.after("decoder head", steps.total - steps.done)
    weights = weights_of(decoder) - decoder.embed_tokens.weight.numel()
    return artifacts("decoder", layout.DECODER, precision, weights, graph.weight_bytes)
