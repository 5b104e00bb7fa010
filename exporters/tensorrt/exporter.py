"""Write what TensorRT engines are built from: graphs of standard operators, and the plan of the build.

In: a `VlmModel`, precisions, a TensorRT version and the length of the key/value cache. Out: graphs without contrib
operators (`onnx/vision_encoder*.onnx`, `onnx/embed_tokens*.onnx`, `onnx/decoder_model_merged*.onnx`), their data,
`build_plan.json` and the tokenizer. The graphs run in ONNX Runtime, too. The same model and options give the same
bytes.
"""

from __future__ import annotations

from pathlib import Path

from edgevlm.exporters.base import Artifact, Progress
from edgevlm.exporters.onnx import layout
from edgevlm.exporters.onnx import standard_weights as weights
from edgevlm.exporters.onnx.configs import write_tokenizer
from edgevlm.exporters.onnx.decoder import DecoderBuilder
from edgevlm.exporters.onnx.dialect_standard import DecomposedDialect, FusedDialect
from edgevlm.exporters.onnx.external import ExternalData
from edgevlm.exporters.onnx.fusion_standard import DecomposedFusionDialect, FusedFusionDialect, build_fusion
from edgevlm.exporters.onnx.graph import Graph
from edgevlm.exporters.onnx.parts import Steps, artifacts, weight_errors, weights_of
from edgevlm.exporters.onnx.table import StoredTable
from edgevlm.exporters.tensorrt.plan import USUAL_TEXT, component, usual_prompt
from edgevlm.exporters.tensorrt.schemes import SCHEMES
from edgevlm.exporters.tensorrt.versions import TensorRtOptions
from edgevlm.exporters.tensorrt.vision import export_vision
from edgevlm.models.footprint import release
from edgevlm.models.fusion import Fusion
from edgevlm.models.vlm import VlmModel
from edgevlm.quant.schemes import store
from edgevlm.quant.tensor import QuantizedTensor
from edgevlm.quant.vision import StaticPlan
from edgevlm.recipe import Precision, VisionPrecision
from edgevlm.runtimes.build_plan import PLAN, PLAN_SCHEMA_VERSION, BuildPlan, ComponentPlan, write_build_plan


def export(
    model: VlmModel,
    out: Path,
    *,
    precision: Precision,
    vision_precision: VisionPrecision,
    static: StaticPlan | None = None,
    options: TensorRtOptions,
    progress: Progress,
) -> list[Artifact]:
    """Write the files into `out`, an existing folder.

    Args:
        model: `supports` has nothing against it. Its weights are converted one at a time, and let go of layer by layer.
        out: the bundle's folder.
        precision: of the decoder and its embedding; it computes in 16 bits, but for fp32.
        vision_precision: fp32, fp16 or w8a8; the latter two compute in 16 bits beside int8.
        static: how w8a8 computes.
        options: what the graphs are written for.
        progress: called with weights done, weights in all, and what is being written.

    Raises:
        CheckpointError: a weight is not finite or does not fit the precision, or the tokenizer cannot be read.
        UnsupportedError: codes that a pass chose are not such as TensorRT reads.
        OSError: a file cannot be written.
    """
    folder = out / layout.FOLDER
    folder.mkdir()
    fusions = [] if model.fusion is None else [model.fusion]
    steps = Steps([model.vision, *fusions, model.decoder], progress)
    with weight_errors(model):
        vision, vision_plan = _export_vision(model, folder, vision_precision, static, options, steps)
        fused = [_export_fusion(model, fusion, folder, precision, options, steps) for fusion in fusions]
        table, embedding, embedding_plan = _export_embedding(model, folder, precision, options, steps)
        decoder, decoder_plan = _export_decoder(model, folder, precision, options, table, steps)
    plan = BuildPlan(
        schema_version=PLAN_SCHEMA_VERSION,
        tensorrt=str(options),
        attention="fused" if options.fused else "decomposed",
        kv_length=options.kv_length,
        components=(vision_plan, embedding_plan, *(each for _, each in fused), decoder_plan),
    )
    write_build_plan(out, plan)
    names = write_tokenizer(model.spec, model.tokenizer_files, out)
    tokenizer = [Artifact(name, "tokenizer", "json") for name in names]
    fusion_files = [file for files, _ in fused for file in files]
    return [*vision, *fusion_files, *embedding, *decoder, Artifact(PLAN, "config", "json"), *tokenizer]


def _export_vision(
    model: VlmModel,
    folder: Path,
    precision: VisionPrecision,
    static: StaticPlan | None,
    options: TensorRtOptions,
    steps: Steps,
) -> tuple[list[Artifact], ComponentPlan]:
    steps.before("vision tower")
    compute, stored = options.compute(precision), options.stored(precision)
    path = folder / layout.graph_file(layout.VISION, stored)
    with ExternalData(folder / layout.data_file(layout.VISION, stored)) as data:
        size = model.spec.vision.image_size
        weight_bytes = export_vision(model.vision, size, compute=compute, static=static, path=path, data=data)
    count = weights_of(model.vision)
    release(model.vision)
    steps.after("vision tower", count)
    written = artifacts("vision", layout.VISION, stored, count, weight_bytes)
    profiles = {"image": {"batch_size": (1, 1, 1)}}
    return written, component(folder.parent, "vision", written, compute=compute, profiles=profiles)


def _export_fusion(
    model: VlmModel, fusion: Fusion, folder: Path, precision: Precision, options: TensorRtOptions, steps: Steps
) -> tuple[list[Artifact], ComponentPlan]:
    steps.before("fusion")
    kind = FusedFusionDialect if options.fused else DecomposedFusionDialect
    compute, stored = options.compute(precision), options.stored(precision)
    with ExternalData(folder / layout.data_file(layout.FUSION, stored)) as data:
        graph = Graph(layout.FUSION, data, opset=kind.opset, contrib=False)
        dialect = kind(graph, fusion, model.spec.vision.image_tokens, options.kv_length, compute=compute)
        build_fusion(DecoderBuilder(fusion, dialect, precision, scheme=SCHEMES[compute]))
    graph.save(folder / layout.graph_file(layout.FUSION, stored))
    count = weights_of(fusion)
    release(fusion)
    steps.after("fusion", count)
    written = artifacts("fusion", layout.FUSION, stored, count, graph.weight_bytes)
    profiles = {"prompt": {"text_length": (1, min(USUAL_TEXT, options.kv_length), options.kv_length)}}
    return written, component(folder.parent, "fusion", written, compute=compute, profiles=profiles)


def _export_embedding(
    model: VlmModel, folder: Path, precision: Precision, options: TensorRtOptions, steps: Steps
) -> tuple[StoredTable, list[Artifact], ComponentPlan]:
    weight = model.decoder.embed_tokens.weight
    steps.before("token embedding")
    compute, stored = options.compute(precision), options.stored(precision)
    with ExternalData(folder / layout.data_file(layout.EMBEDDING, stored)) as data:
        asked = model.quantized.get("embed_tokens.weight")
        scheme = asked or SCHEMES[compute]("embed_tokens.weight", "embedding", weight.shape[1], precision)
        matrix = scheme if isinstance(scheme, QuantizedTensor) else store(weight, scheme)
        table = weights.write_table(matrix, data, weights.numpy_dtype(compute))
        graph = Graph(layout.EMBEDDING, data, opset=_dialect(options).opset, contrib=False)
        weights.build_embedding(graph, table, model.spec.prompt.image_token_id)
    graph.save(folder / layout.graph_file(layout.EMBEDDING, stored))
    release(model.decoder.embed_tokens)
    steps.after("token embedding", weight.numel())
    written = artifacts("embed", layout.EMBEDDING, stored, weight.numel(), table.weight_bytes)
    profiles = _token_profiles(model, options)
    return table, written, component(folder.parent, "embed", written, compute=compute, profiles=profiles)


def _export_decoder(
    model: VlmModel, folder: Path, precision: Precision, options: TensorRtOptions, table: StoredTable, steps: Steps
) -> tuple[list[Artifact], ComponentPlan]:
    decoder, spec = model.decoder, model.spec.decoder
    compute, stored = options.compute(precision), options.stored(precision)
    with ExternalData(folder / layout.data_file(layout.DECODER, stored)) as data:
        kind = _dialect(options)
        graph = Graph(layout.DECODER, data, opset=kind.opset, contrib=False)
        dialect = kind(graph, spec, options.kv_length, compute=compute)
        builder = DecoderBuilder(decoder, dialect, precision, model.quantized, SCHEMES[compute])
        builder.build(table, steps.layers_of(decoder))
    graph.save(folder / layout.graph_file(layout.DECODER, stored))
    release(decoder)
    steps.after("decoder head", steps.total - steps.done)
    count = weights_of(decoder) - decoder.embed_tokens.weight.numel()
    written = artifacts("decoder", layout.DECODER, stored, count, graph.weight_bytes)
    shared = f"{layout.FOLDER}/{layout.data_file(layout.EMBEDDING, stored)}"
    plan = component(
        folder.parent,
        "decoder",
        written,
        compute=compute,
        profiles=_token_profiles(model, options),
        in_place=options.fused,
        largest_matrix=max(spec.vocab_size, 2 * spec.intermediate_size) * spec.hidden_size,
        shares=(shared,) if spec.tied_embeddings else (),
    )
    held = table.weight_bytes if spec.tied_embeddings else 0
    return written, plan.model_copy(update={"weight_bytes": plan.weight_bytes + held})


def _token_profiles(model: VlmModel, options: TensorRtOptions) -> dict[str, dict[str, tuple[int, int, int]]]:
    usual = usual_prompt(model.spec, options.kv_length)
    return {
        "prefill": {"sequence_length": (1, usual, options.kv_length)},
        "decode": {"sequence_length": (1, 1, 1)},
    }


def _dialect(options: TensorRtOptions) -> type[FusedDialect] | type[DecomposedDialect]:
    return FusedDialect if options.fused else DecomposedDialect
